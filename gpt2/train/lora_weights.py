"""Weights that are no mesh's: a whole model in each process, and a frozen one of which only a part is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2.distributed.ranks import ALONE, Ranks
from gpt2.kernels import ops
from gpt2.kernels.allocator import keep_freed_memory
from gpt2.model.gpt import GPT
from gpt2.train.entries import entries
from gpt2.train.fused_blocks import fuse_blocks
from gpt2.train.weights import Weights


class ReplicatedWeights(Weights):
    """Each of several processes holds all of the model; what they found is summed once a step."""

    def __init__(self, master: GPT, dtype: torch.dtype, ranks: Ranks) -> None:
        super().__init__(master, dtype)
        self.ranks = ranks

    def unscale(self) -> None:
        """The step's last micro-batch is over: here the processes' gradients come together."""
        if self.ranks.world_size > 1:
            sum_gradients(self.parameters)
        super().unscale()

    def whole_model(self) -> GPT | None:
        return self.worker if self.ranks.is_main else None


class LoRAWeights(ReplicatedWeights):
    """A frozen base, in whatever form, and float32 parameters beside it, which alone are moved and kept.

    There is no second set: what is trained is small, and a pass reads it in its own dtype (model/lora.py).
    """

    def __init__(self, module: GPT, dtype: torch.dtype, ranks: Ranks = ALONE) -> None:
        self.master = self.worker = module
        self.dtype, self.shared, self.ranks = dtype, True, ranks
        on_processor = next(module.parameters()).device.type == "cpu"
        self.fused = on_processor and ops.have_kernels_for(dtype)
        if self.fused:
            keep_freed_memory()
            fuse_blocks(module)
        self.named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        self.parameters = self.short = list(self.named.values())
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.start_scale()

    def tensors(self) -> dict[str, Tensor]:
        """What is trained, live."""
        return dict(entry for name, tensor in self.named.items() for entry in entries(name, tensor))


def sum_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Each gradient becomes its sum over all processes, by one message."""
    import torch.distributed as dist

    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
