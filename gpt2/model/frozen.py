"""Matrices of a base that is not trained, in int8 or int4: QLoRA's idea (Dettmers et al. 2023) with our formats.

The bytes are those of `quant.py`, so a matrix is the same here and in the processor's writing kernels. A product makes
its matrix dense in the dtype of the pass and forgets it again. Embeddings, which are the head too, stay as they are.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from gpt2.errors import UserError
from gpt2.kernels import ops
from gpt2.kernels.frozen import FrozenLayer
from gpt2.model import quant
from gpt2.model.gpt import GPT
from gpt2.model.lora_config import TARGETS


class QuantisedWeight(nn.Module):
    """A matrix (F, C) as whole numbers and their scales, on any device."""

    data: Tensor  # uint8, as quant.py says of `kind`
    scales: Tensor  # the bits of bfloat16, in int16 so that a change of the module's dtype leaves them alone

    def __init__(self, weight: Tensor, kind: str) -> None:
        super().__init__()
        packed = pack(weight.detach().float().cpu().numpy(), kind)
        assert packed.scales is not None
        self.kind, self.shape = kind, (packed.rows, packed.columns)
        self.register_buffer("data", torch.from_numpy(packed.data).to(weight.device))
        self.register_buffer("scales", torch.from_numpy(packed.scales.view("int16")).to(weight.device))

    @property
    def device(self) -> torch.device:
        return self.data.device

    def dense(self, dtype: torch.dtype) -> Tensor:
        """(F, C) in that dtype: what `quant.unpack` gives, rounded."""
        blocks = len(self.data)
        if self.kind == "int8":
            steps = self.data.permute(0, 2, 1, 3).reshape(blocks, quant.LANES, -1).to(dtype) - 128  # [Np/16][16][Kp]
        else:
            bytes_ = self.data.permute(0, 3, 1, 2, 4).reshape(blocks, quant.LANES, -1, 32)
            halves = torch.stack([bytes_ & 15, bytes_ >> 4], dim=3)  # [Np/16][16][Kp/64][2][32]
            steps = halves.reshape(blocks, quant.LANES, -1).to(dtype) - 8
        scales = self.scales.view(torch.bfloat16).transpose(1, 2).to(dtype)  # [Np/16][16][groups]
        width = quant.GROUP if self.kind == "int8" else quant.CHUNK
        steps.mul_(scales.repeat_interleave(width, dim=2)[:, :, : steps.size(2)])
        return steps.flatten(0, 1)[: self.shape[0], : self.shape[1]]

    def extra_repr(self) -> str:
        return f"{self.shape[0]} x {self.shape[1]}, {self.kind}"


def pack(matrix: quant.Floats, kind: str) -> quant.Packed:
    """`quant.pack`, by the kernels where numba is."""
    if not ops.have_kernels():
        return quant.pack(matrix, kind)
    from gpt2.kernels.pack import pack as fill

    rows, columns = matrix.shape
    packed, clips = quant.empty(rows, columns, kind), np.array(quant.CLIPS, np.float32)
    if not fill(matrix, kind, packed.data, packed.scales, packed.group, clips, torch.get_num_threads()):
        raise UserError("the base holds numbers that are not finite; such weights cannot be quantised")
    return packed


class FrozenLinear(nn.Module):
    """nn.Linear with a quantised weight (F, C) and its bias as it was, or None."""

    def __init__(self, layer: nn.Linear, kind: str) -> None:
        super().__init__()
        self.out_features, self.in_features = layer.out_features, layer.in_features
        self.weight = QuantisedWeight(layer.weight, kind)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return ops.frozen_linear(x, self.weight, self.bias)

    @property
    def parts(self) -> FrozenLayer:
        """The layer as the operations of kernels/ops.py take it."""
        return FrozenLayer(self.weight, self.bias)


def quantise_base(module: GPT, kind: Literal["int8", "int4"]) -> None:
    """The matrices of all blocks in int8 or int4, in place and frozen; call it before `apply_lora`."""
    if kind not in ("int8", "int4"):
        raise UserError(f"base weights '{kind}': choose float, int8 or int4")
    module.requires_grad_(False)
    for name, block in module.h.named_children():
        for part in TARGETS:
            holder = block.get_submodule(part.partition(".")[0])
            layer = getattr(holder, part.partition(".")[2])
            if type(layer) is not nn.Linear:
                raise UserError(f"h.{name}.{part}: no plain matrix any more; quantise the base before LoRA is put on")
            setattr(holder, part.partition(".")[2], FrozenLinear(layer, kind))
