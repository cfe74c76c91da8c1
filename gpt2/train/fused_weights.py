"""One process on a processor, by its kernels: in bfloat16 the gradient goes straight into the weights, in one pass.

A step of a single micro-batch needs no float32 gradient: AdamW reads the bfloat16 one, moves the masters and writes the
short weights. Several micro-batches are summed in float32, as ever. The numbers are those of Weights and Optimizer to
float32's precision. In float32, where weights and masters are one, the blocks' kernels are all that differs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gpt2.kernels import ops
from gpt2.kernels.allocator import keep_freed_memory
from gpt2.model.gpt import GPT
from gpt2.train.config import OptimConfig
from gpt2.train.fused_blocks import fuse_blocks
from gpt2.train.optim import Optimizer
from gpt2.train.weights import Weights


def make_weights(master: GPT, dtype: torch.dtype) -> Weights:
    """Weights of one process, by the fused passes where they fit."""
    on_processor = next(master.parameters()).device.type == "cpu"
    fits = on_processor and ops.have_kernels_for(dtype)
    return FusedWeights(master, dtype) if fits else Weights(master, dtype)


def make_optimizer(weights: Weights, config: OptimConfig, dtype: torch.dtype) -> Optimizer:
    """The optimizer that goes with them; `dtype` is Muon's."""
    if isinstance(weights, FusedWeights):
        return FusedOptimizer(weights, config, dtype)
    return Optimizer(weights.master, config, dtype)


class FusedWeights(Weights):
    """Weights whose gradients stay in bfloat16 until a second micro-batch comes; clipping is a factor, for later.

    In float32 they are the sums from the first on. What has no gradient yet has None, not zeros.
    """

    fused = True

    def __init__(self, master: GPT, dtype: torch.dtype) -> None:
        super().__init__(master, dtype)
        keep_freed_memory()
        fuse_blocks(self.worker)
        self.published: set[int] = set()  # ids of the masters that the optimizer has rounded into the worker
        self.clear_gradients()

    def clear_gradients(self) -> None:
        """Forget them: what is not there is neither zeroed nor read."""
        self.factor = 1.0  # what clipping makes of the gradients
        self.summed = self.shared  # whether they are float32 sums
        for parameter, short in zip(self.parameters, self.short, strict=True):
            parameter.grad = short.grad = None

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Add the gradient of one micro-batch's loss to those before it."""
        if self.shared:
            super().backward(loss, last)
            return
        loss.backward()  # type: ignore[no-untyped-call]
        if self.summed or not last:
            self.sum_gradients()

    def sum_gradients(self) -> None:
        """Move the bfloat16 gradients into the float32 sums."""
        self.summed = True
        for parameter, short in zip(self.parameters, self.short, strict=True):
            if short.grad is not None:
                if parameter.grad is None:
                    parameter.grad = short.grad.float()
                else:
                    parameter.grad.add_(short.grad)
                short.grad = None

    def clip(self, most: float) -> float:
        """The gradients' global norm; if it is above `most` (0: any will do), they count less from here on."""
        if self.summed:
            return super().clip(most)
        norm = math.sqrt(sum(passes().square_sum(short.grad) for short in self.short if short.grad is not None))
        if most > 0 and math.isfinite(most):
            self.factor = min(1.0, most / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_ has it
        return norm

    @torch.no_grad()
    def publish(self) -> None:
        """Round into the worker what the optimizer has not rounded itself."""
        if self.shared:
            return
        for parameter, short in zip(self.parameters, self.short, strict=True):
            if id(parameter) not in self.published:
                short.copy_(parameter)
        self.published.clear()


class FusedOptimizer(Optimizer):
    """Optimizer whose AdamW reads the bfloat16 gradients and publishes what it moves."""

    def __init__(self, weights: FusedWeights, config: OptimConfig, dtype: torch.dtype) -> None:
        super().__init__(weights.master, config, dtype)
        self.weights = weights

    def step(self, factor: float, progress: float = 1.0) -> None:
        """As Optimizer.step: what is moved here has no float32 gradient, so that nothing moves twice."""
        if not self.weights.summed:
            self.move(factor)
        super().step(factor, progress)

    @torch.no_grad()
    def move(self, factor: float) -> None:
        """AdamW on its parameters; the others get float32 gradients, for Muon."""
        groups = {id(parameter): group for group in self.adamw.param_groups for parameter in group["params"]}
        for parameter, short in zip(self.weights.parameters, self.weights.short, strict=True):
            group = groups.get(id(parameter))
            if short.grad is None:
                continue
            if group is None:
                parameter.grad = short.grad.float().mul_(self.weights.factor)
                continue
            rates = {**group, "lr": group["full_lr"] * factor}
            state, number = self.adamw.state[parameter], int(self.steps) + 1
            passes().adamw(parameter, short, short.grad, state, rates, number, self.weights.factor)
            self.weights.published.add(id(parameter))


def passes() -> Any:
    """The kernels, which need numba: only where `make_weights` found it."""
    from gpt2.kernels import passes as module

    return module
