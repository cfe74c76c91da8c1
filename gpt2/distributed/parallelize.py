"""A model made fit for many processes, from outside: tensor parallel, 8 bits, recompute, compile, shard.

The order matters: recomputation wraps what tensor parallelism left of a block, compilation sees both, and FSDP2 hooks
around the outcome (torchtitan's order). On one process `mesh` is None and the three in the middle remain.

Tensor parallelism deals out the heads of attention and the columns of the MLP (Shoeybi et al. 2019, section 3). Norms,
embeddings and the head are alike in its processes: they are few beside a large model's blocks, and FSDP shards them
all the same. Gradients are summed over the data's processes, not averaged: the loss is divided by the global number
of targets before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from gpt2.distributed.float8 import apply_float8
from gpt2.distributed.mesh import DATA
from gpt2.distributed.recompute import recompute_block
from gpt2.model.gpt import GPT, CausalSelfAttention

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Recompute = Literal["none", "selective", "full"]


def parallelize(
    model: GPT,
    mesh: DeviceMesh | None,
    dtype: torch.dtype = torch.float32,
    recompute: Recompute = "none",
    compile_blocks: Callable[[GPT], object] | None = None,
    fill: Callable[[nn.Module, str], None] | None = None,
    fp8: bool = False,
) -> GPT:
    """The same model, changed in place; `dtype` is that of the passes, parameters stay as they are (float32).

    `compile_blocks` compiles the blocks of a model or leaves it: whether that pays is not this file's business. A model
    on the meta device takes part after part, "h.0." and so on, from `fill`, and each is cut down before the next comes.
    """
    if mesh is not None:
        split_attention(model)
        if mesh["tp"].size() > 1:
            apply_tensor_parallel(model, mesh["tp"])
    if fp8:
        apply_float8(model)
    if recompute != "none":
        for block in model.h:
            dice = any(getattr(part, "dropout", 0.0) > 0.0 for part in block.modules())  # an adapter may have its own
            recompute_block(block, selective=recompute == "selective", dice=dice)
    if compile_blocks is not None:
        compile_blocks(model)
    if mesh is not None:
        apply_sharding(model, mesh, dtype, fill)
    return model


class SplitLinear(nn.Module):
    """A fused q, k, v as three linear layers, so that each can be dealt out by heads."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        weights = fused.weight.detach().chunk(3)
        biases = fused.bias.detach().chunk(3) if fused.bias is not None else (None, None, None)
        self.q, self.k, self.v = map(linear, weights, biases)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.q(x), self.k(x), self.v(x)


class SplitAttention(CausalSelfAttention):
    """Attention whose c_attn is a SplitLinear; takes over the parts of the one it replaces."""

    def __init__(self, whole: CausalSelfAttention) -> None:
        nn.Module.__init__(self)
        self.layer, self.head_dim, self.dropout = whole.layer, whole.head_dim, whole.dropout
        self.scale = whole.scale
        self.c_attn = SplitLinear(whole.c_attn)  # type: ignore[assignment]
        self.c_proj = whole.c_proj

    def qkv(self, x: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = self.c_attn(x)
        return parts


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer that owns copies of these."""
    made = nn.Linear(weight.size(1), weight.size(0), bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.clone())
    if bias is not None:
        made.bias = nn.Parameter(bias.clone())
    return made


def split_attention(model: GPT) -> None:
    """On every mesh, so that parameters have the same names on all of them."""
    for block in model.h:
        assert isinstance(block.attn, CausalSelfAttention)
        block.attn = SplitAttention(block.attn)


def apply_tensor_parallel(model: GPT, mesh: DeviceMesh) -> None:
    """q, k, v and c_fc by columns, both c_proj by rows: one all-reduce after attention and one after the MLP."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        ParallelStyle,
        PrepareModuleInput,
        RowwiseParallel,
        parallelize_module,
    )

    # q, k and v share one input: it becomes a DTensor before them, so that their three gradients are reduced as one.
    whole = Replicate()
    plan: dict[str, ParallelStyle] = {
        "attn.c_attn": PrepareModuleInput(input_layouts=whole, desired_input_layouts=whole),
        "attn.c_attn.q": ColwiseParallel(),
        "attn.c_attn.k": ColwiseParallel(),
        "attn.c_attn.v": ColwiseParallel(),
        "attn.c_proj": RowwiseParallel(),
        "mlp.c_fc": ColwiseParallel(),
        "mlp.c_proj": RowwiseParallel(),
    }
    for block in model.h:
        parallelize_module(block, mesh, plan)


def apply_sharding(
    model: GPT, mesh: DeviceMesh, dtype: torch.dtype, fill: Callable[[nn.Module, str], None] | None = None
) -> None:
    """FSDP2: each block a unit; embeddings, last norm and head (tied or not) the root unit."""
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    short = None if dtype == torch.float32 else dtype
    policy = MixedPrecisionPolicy(param_dtype=short, reduce_dtype=torch.float32)
    data = mesh[DATA]
    for name, unit in units(model):
        if fill is not None:
            fill(unit, name)
        if unit in set(model.h):
            fully_shard(unit, mesh=data, mp_policy=policy, reshard_after_forward=mesh["dp_shard"].size() > 1)
    if model.config.tie_head:
        model.lm_head.weight = model.wte.weight
    fully_shard(model, mesh=data, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other reduction


def units(model: GPT) -> Iterator[tuple[str, nn.Module]]:
    """The model's parts with the prefixes of their parameters, in the order of these."""
    for name, part in model.named_children():
        if part is model.h:
            yield from ((f"{name}.{index}.", block) for index, block in enumerate(model.h))
        else:
            yield f"{name}.", part
