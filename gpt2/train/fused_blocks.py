"""The worker's blocks changed from outside: each norm joins the layers behind it, so that less is kept for backward."""

from __future__ import annotations

import functools

from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.kernels import ops
from gpt2.model.gpt import GPT, MLP, Block


def fuse_blocks(model: GPT) -> None:
    """Replace forward functions by those of ops.py, where layers are plain ones. Parameters keep their names."""
    for block in model.h:
        assert isinstance(block, Block)
        if plain(block.attn.c_attn):
            block.attn.qkv = functools.partial(norm_qkv, block.ln_1, block.attn.c_attn)  # type: ignore[method-assign]
            block.ln_1.forward = unchanged  # type: ignore[method-assign]
        if plain(block.mlp.c_fc) and plain(block.mlp.c_proj) and block.mlp.activation is ops.gelu:
            block.mlp.forward = functools.partial(norm_mlp, block.ln_2, block.mlp)  # type: ignore[method-assign]
            block.ln_2.forward = unchanged  # type: ignore[method-assign]
    if model.config.tie_head and model.wte.weight.requires_grad and ops.have_kernels():
        ops.join_gradients(model.wte.weight)
    for module in model.modules():
        if isinstance(module, nn.Linear) and plain(module):
            module.forward = functools.partial(linear, module)  # type: ignore[method-assign]


def plain(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear


def unchanged(input: Tensor) -> Tensor:
    """The norm's work is done by the layer behind it."""
    return input


def norm_qkv(norm: nn.LayerNorm, layer: nn.Linear, x: Tensor) -> tuple[Tensor, ...]:
    return ops.norm_linear(x, norm, layer, 3)


def norm_mlp(norm: nn.LayerNorm, mlp: MLP, x: Tensor) -> Tensor:
    return F.dropout(ops.norm_mlp(x, norm, mlp.c_fc, mlp.c_proj), mlp.dropout, mlp.training)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """What the layer computes, by the operation that may be fused."""
    return ops.linear(x, layer.weight, layer.bias)
