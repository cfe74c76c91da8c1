"""The weights of a model that lies on a mesh: FSDP2 keeps the float32 masters and makes the short ones for a pass."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from gpt2.distributed.shards import global_norm, part
from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT
from gpt2.train.entries import Joined
from gpt2.train.weights import Weights

MOST_GATHERED = 2 * 10**9  # parameters: what is larger than this need not fit one process's memory


class MeshWeights(Weights):
    """`master` and `worker` are one sharded model; calling it needs all processes together."""

    def __init__(self, model: GPT, dtype: torch.dtype) -> None:
        self.master = self.worker = model
        self.dtype, self.shared = dtype, True
        self.parameters = self.short = list(model.parameters())
        self.start_scale()

    def tensors(self) -> dict[str, Tensor]:
        """Of this process, sharded: after an evaluation, which has no backward, the root still lies whole and short."""
        for module in self.master.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return super().tensors()

    def clear_gradients(self) -> None:
        """FSDP makes them anew."""
        for parameter in self.parameters:
            parameter.grad = None

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Add one micro-batch's gradient to this process's shards; copies of the model are summed at the `last`."""
        self.worker.set_requires_all_reduce(last)  # type: ignore[operator]
        super().backward(loss)

    def clip(self, most: float) -> float:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = global_norm(gradients)
        if most > 0 and math.isfinite(most):
            # torch's rule, so that a mesh's steps are those of one process.
            torch._foreach_mul_([part(gradient) for gradient in gradients], min(1.0, most / (norm + 1e-6)))
        return norm

    @torch.no_grad()
    def whole_model(self) -> GPT | None:
        """All processes together gather a plain model on the main one, where it is small enough; None elsewhere."""
        if sum(parameter.numel() for parameter in self.parameters) > MOST_GATHERED:
            return None
        main, whole = dist.get_rank() == 0, {}
        for name, tensor in self.tensors().items():
            full = tensor.full_tensor()  # type: ignore[attr-defined]
            if main:
                whole[name] = full.to(self.dtype)
        return plain_model(self.master.config, Joined(whole)) if main else None


def plain_model(config: GPTConfig, state: Mapping[str, Tensor]) -> GPT:
    """A model that consists of these tensors; the head is tied where it was."""
    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict(state, strict=False, assign=True)
    if config.tie_head:
        model.lm_head.weight = model.wte.weight
    return model
