"""torch.compile for the blocks, where a run is long enough to repay it.

Blocks are alike, or of a few kinds, so that few compilations serve all; embeddings and head around them have fused
forms of their own.
"""

from __future__ import annotations

import shutil
from typing import Literal

import torch

from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT
from gpt2.model.sizes import training_flops_per_token
from gpt2.runtime import say

COST = 60.0  # seconds that compiling the blocks takes, forward and backward, evaluation included
GAIN = 0.2  # of a GPU's step; on a processor the kernels of gpt2.kernels are as fast, or faster (docs/log.md)
EAGER_MFU = 0.3  # share of its peak that a GPU reaches without

Mode = Literal["auto", "on", "off"]


def compile_blocks(model: GPT, mode: Mode, device: str, peak: float, tokens: float) -> bool:
    """Compile the blocks of the model that works, if `mode` says so or a run of `tokens` repays it; whether it did.

    `peak` is the device's FLOP/s. Says in one line what it does, and why not where it could be expected.
    """
    seconds = expected_seconds(model.config, tokens, peak)
    if mode == "off" or (mode == "auto" and not device.startswith("cuda")):
        return False
    if mode == "auto" and not worth_it(seconds):
        say(f"not compiled: about {seconds:,.0f} s of training would not repay it (--compile on does it all the same)")
        return False
    missing = why_not(device)
    if missing:
        say(f"not compiled: {missing}; training goes on without")
        return False
    say(f"compiling the blocks, about {COST:.0f} s at the first step (--compile off leaves it out)")
    if len(set(model.config.attention_pattern)) > 1:
        # Layers of a kind are alike, but their kind follows from their number: as a constant it would be compiled in.
        torch._dynamo.config.allow_unspec_int_on_nn_module = True
    for block in model.h:
        block.compile()
    return True


def expected_seconds(config: GPTConfig, tokens: float, peak: float) -> float:
    """How long training on so many tokens takes uncompiled, roughly."""
    return tokens * training_flops_per_token(config) / (EAGER_MFU * peak)


def worth_it(seconds: float) -> bool:
    """Whether a run of so many seconds gains more than compiling costs, twice over: both are estimates."""
    return seconds * GAIN > 2 * COST


def why_not(device: str) -> str | None:
    """What is missing for torch.compile here, or None: a C++ compiler on a processor, Triton on a GPU."""
    if not device.startswith("cuda") and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        return "torch.compile needs a C++ compiler on a processor"
    try:
        torch.compile(lambda x: 2 * x + 1)(torch.ones(2, device=device))
    except Exception as error:  # a compiler fails in as many ways as there are machines
        return f"torch.compile fails here ({type(error).__name__})"
    return None
