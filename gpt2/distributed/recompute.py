"""Activations computed again in the backward pass instead of kept (Chen et al. 2016)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

# What `selective` keeps: outputs of the block's matrix products and of attention, nearly all of its arithmetic.
# Not bmm: the processor's own attention turns scores into probabilities in place, and would do it twice.
KEPT = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}


def recompute_block(block: nn.Module, selective: bool, dice: bool) -> None:
    """Replace the block's forward pass by one that keeps its input (and, if `selective`, what KEPT lists).

    The module stays as it is, so its parameters keep their names. `dice`: dropout must fall the same way again.
    """
    settings: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": dice}
    if selective:
        settings["context_fn"] = functools.partial(create_selective_checkpoint_contexts, policy)
    plain = block.forward

    def forward(*args: Any) -> Any:  # a function of ours: torch.compile reads no `checkpoint` that it is called by
        return checkpoint(plain, *args, **settings)

    block.forward = forward


def policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep what is dear."""
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
