"""The weights of a run of which a part is trained, or that is no mesh: one module, its trained parameters in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2.distributed.ranks import ALONE, Ranks
from gpt2.model.gpt import GPT
from gpt2.train.entries import entries
from gpt2.train.weights import Weights


class LoRAWeights(Weights):
    """A frozen base, in whatever form, and float32 parameters beside it, which alone are moved and kept.

    There is no second set: what is trained is small, and a pass reads it in its own dtype (model/lora.py). Several
    processes hold all of it each, and sum their gradients once a step.
    """

    def __init__(self, module: GPT, dtype: torch.dtype, ranks: Ranks = ALONE) -> None:
        self.master = self.worker = module
        self.dtype, self.shared, self.ranks = dtype, True, ranks
        self.named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        self.parameters = self.short = list(self.named.values())
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.start_scale()

    def unscale(self) -> None:
        """Here, as the step's last micro-batch is over, what the processes found comes together."""
        if self.ranks.world_size > 1:
            sum_gradients(self.parameters)
        super().unscale()

    def tensors(self) -> dict[str, Tensor]:
        """What is trained, live."""
        return dict(entry for name, tensor in self.named.items() for entry in entries(name, tensor))

    def whole_model(self) -> GPT | None:
        """All processes have it; the main one writes with it."""
        return self.worker if self.ranks.is_main else None


def sum_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Each gradient becomes its sum over all processes, by one message."""
    import torch.distributed as dist

    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
