"""The worker's blocks changed from outside: each norm joins the layers behind it, so that less is kept for backward."""

from __future__ import annotations

import functools

from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.kernels import ops
from gpt2.kernels.frozen import FrozenLayer
from gpt2.model.frozen import FrozenLinear
from gpt2.model.gpt import GPT, MLP, Block
from gpt2.model.lora import LoRALinear


def fuse_blocks(model: GPT) -> None:
    """Replace forward functions by those of ops.py, for layers plain or with LoRA. Parameters keep their names."""
    for block in model.h:
        assert isinstance(block, Block)
        fuse_attention(block)
        fuse_mlp(block)
    if model.config.tie_head and model.wte.weight.requires_grad and ops.have_kernels():
        ops.join_gradients(model.wte.weight)
    for module in model.modules():
        if isinstance(module, nn.Linear) and plain(module):
            module.forward = functools.partial(linear, module)  # type: ignore[method-assign]


def fuse_attention(block: Block) -> None:
    """ln_1 joins c_attn."""
    norm, layer = block.ln_1, block.attn.c_attn
    if plain(layer):
        block.attn.qkv = functools.partial(norm_qkv, norm, layer)  # type: ignore[method-assign]
    elif adapted(layer):
        block.attn.qkv = functools.partial(norm_qkv_lora, norm, layer)  # type: ignore[method-assign]
    else:
        return
    norm.forward = unchanged  # type: ignore[method-assign]


def fuse_mlp(block: Block) -> None:
    """ln_2 joins c_fc, GELU and c_proj."""
    norm, mlp = block.ln_2, block.mlp
    layers = mlp.c_fc, mlp.c_proj
    if mlp.activation is not ops.gelu:
        return
    if all(map(plain, layers)):
        mlp.forward = functools.partial(norm_mlp, norm, mlp)  # type: ignore[method-assign]
    elif any(map(adapted, layers)) and all(plain(layer) or quantised(layer) or adapted(layer) for layer in layers):
        mlp.forward = functools.partial(norm_mlp_lora, norm, mlp)  # type: ignore[method-assign]
    else:
        return
    norm.forward = unchanged  # type: ignore[method-assign]


def plain(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear


def quantised(layer: nn.Module) -> bool:
    return isinstance(layer, FrozenLinear)


def adapted(layer: nn.Module) -> bool:
    """Whether LoRA is beside it, with nothing dropped: that goes operation by operation."""
    return isinstance(layer, LoRALinear) and layer.dropout == 0.0


def unchanged(input: Tensor) -> Tensor:
    """The norm's work is done by the layer behind it."""
    return input


def norm_qkv(norm: nn.LayerNorm, layer: nn.Linear, x: Tensor) -> tuple[Tensor, ...]:
    return ops.norm_linear(x, norm, layer, 3)


def norm_mlp(norm: nn.LayerNorm, mlp: MLP, x: Tensor) -> Tensor:
    return F.dropout(ops.norm_mlp(x, norm, mlp.c_fc, mlp.c_proj), mlp.dropout, mlp.training)


def norm_qkv_lora(norm: nn.LayerNorm, layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return ops.norm_lora(x, norm, parts_of(layer), 3)


def norm_mlp_lora(norm: nn.LayerNorm, mlp: MLP, x: Tensor) -> Tensor:
    up, down = (parts_of(layer) for layer in (mlp.c_fc, mlp.c_proj))
    return F.dropout(ops.norm_mlp_lora(x, norm, up, down), mlp.dropout, mlp.training)


def parts_of(layer: nn.Module) -> FrozenLayer:
    """A frozen layer of any of the three kinds."""
    if isinstance(layer, LoRALinear | FrozenLinear):
        return layer.parts
    assert isinstance(layer, nn.Linear)
    return FrozenLayer(layer.weight, layer.bias)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """What the layer computes, by the operation that may be fused."""
    return ops.linear(x, layer.weight, layer.bias)
