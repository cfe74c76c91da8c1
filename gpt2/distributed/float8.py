"""--fp8: the large matrices of the blocks multiplied in 8-bit floats, applied to a finished model from outside."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.errors import UserError
from gpt2.kernels.float8 import SIDE, Product
from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT

CAPABLE = (8, 9)  # compute capability from which NVIDIA's matrix units multiply them: Ada, Hopper and later


class Float8Linear(nn.Linear):
    """A layer that trains in 8 bits and is evaluated in its own dtype, as it will be used."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.shape[:-1].numel() % SIDE:  # rows are multiples of it (check_float8)
            return F.linear(x, self.weight, self.bias)
        out: Tensor = Product.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return out


def check_float8(device: str, dtype: str, tp: int, shape: GPTConfig) -> None:
    """UserError for a machine, a number format, a mesh or a shape that has no products in 8 bits."""
    if not device.startswith("cuda") or torch.version.hip:  # AMD's older cards have 8-bit floats of another kind
        raise UserError(
            f"--fp8: {device} multiplies no 8-bit floats, which takes an NVIDIA GPU; leave it out, or --no-fp8"
        )
    if torch.cuda.get_device_capability(device) < CAPABLE:
        raise UserError(
            f"--fp8: {torch.cuda.get_device_name(device)} multiplies no 8-bit floats (compute capability 8.9 and up "
            "does); leave it out, or --no-fp8"
        )
    if dtype != "bfloat16":
        raise UserError(f"--fp8 --dtype {dtype}: 8-bit products stand in for bfloat16 ones; leave --dtype out")
    if tp > 1:
        raise UserError(f"--fp8 --tp {tp}: layers that several processes share stay in bfloat16; leave one out")
    sides = {"n_embd": shape.n_embd, "n_head * head_dim": shape.attention_width, "n_inner": shape.n_inner}
    for name, side in (sides | {"context_length": shape.context_length}).items():
        if side % SIDE:
            raise UserError(f"--fp8: {name} = {side} is no multiple of {SIDE}, as 8-bit products need; leave it out")


def apply_float8(model: GPT) -> None:
    """Give all matrices of the blocks, in place, products in 8 bits; their names and parameters stay."""
    for block in model.h:
        for layer in block.modules():
            if type(layer) is nn.Linear:
                layer.__class__ = Float8Linear
