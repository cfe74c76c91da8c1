"""Two sets of weights: float32 masters that the optimizer moves, and the short ones that the passes run on.

Short weights halve the memory traffic and use the fast matrix units; masters keep updates that are too small for
them (Micikevicius et al. 2018). In float32 the two are the same tensors and nothing is copied.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from gpt2.model.gpt import GPT
from gpt2.train.entries import entries

FIRST_SCALE = 2.0**16
GROW_AFTER = 2000  # good steps


class Weights:
    """`master` (float32) and `worker` (the runtime's dtype) of one model; `fused`: by the processor's kernels."""

    fused = False

    def __init__(self, master: GPT, dtype: torch.dtype) -> None:
        self.master = master
        self.dtype = dtype
        self.shared = dtype == torch.float32
        self.worker = master if self.shared else copy.deepcopy(master).to(dtype)
        self.parameters = list(master.parameters())
        self.short = list(self.worker.parameters())
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.start_scale()

    def start_scale(self) -> None:
        """Short exponents (float16) lose small gradients: scale the loss up, halve on overflow, double when calm."""
        self.loss_scale = FIRST_SCALE if self.dtype == torch.float16 else 1.0
        self.good_steps = 0

    def clear_gradients(self) -> None:
        """Zero the master gradients in place: their memory stays mapped. What a broken-off pass left goes too."""
        for parameter in self.parameters:
            assert parameter.grad is not None
            parameter.grad.zero_()
        if not self.shared:
            for short in self.short:
                short.grad = None

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Add the gradient of one micro-batch's loss to the master gradients, in float32.

        `last`: of the step's micro-batches, which matters where gradients travel (mesh_weights.py).
        """
        (loss * self.loss_scale).backward()  # type: ignore[no-untyped-call]
        if self.shared:
            return
        for parameter, short in zip(self.parameters, self.short, strict=True):
            if short.grad is not None:
                assert parameter.grad is not None
                parameter.grad.add_(short.grad)
                short.grad = None

    def unscale(self) -> None:
        """Take the loss scale out of the master gradients."""
        if self.loss_scale != 1.0:
            for parameter in self.parameters:
                assert parameter.grad is not None
                parameter.grad.mul_(1.0 / self.loss_scale)

    def clip(self, most: float) -> float:
        """Scale the gradients so that their global norm is at most `most` (0: leave them); returns the norm before."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if most > 0 and math.isfinite(most):
            torch.nn.utils.clip_grads_with_norm_(self.parameters, most, norm)
        return float(norm)

    def tensors(self) -> dict[str, Tensor]:
        """The live masters, by the names of entries.py; what is copied into them is the model's (then `publish`)."""
        return dict(entry for name, tensor in self.master.named_parameters() for entry in entries(name, tensor))

    def whole_model(self) -> GPT | None:
        """A model to write samples with; among several processes the main one's, and None in the others."""
        return self.worker

    def accept(self, gradient_norm: float) -> bool:
        """Whether to take this step; a float16 overflow is skipped and lowers the loss scale."""
        if self.dtype != torch.float16:
            return True
        if not math.isfinite(gradient_norm):
            self.loss_scale, self.good_steps = max(self.loss_scale / 2, 1.0), 0
            return False
        self.good_steps += 1
        if self.good_steps == GROW_AFTER:
            self.loss_scale, self.good_steps = self.loss_scale * 2, 0
        return True

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the worker after a step."""
        if not self.shared:
            for parameter, short in zip(self.parameters, self.short, strict=True):
                short.copy_(parameter)

    def train(self) -> None:
        self.worker.train()

    def eval(self) -> None:
        self.worker.eval()
