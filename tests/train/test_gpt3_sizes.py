"""GPT-3's sizes in small, layers alternating as published: they train, are saved, and write the same when loaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import BYTES, state_of, write_model

from gpt2.checkpoint.hf_config import read_config
from gpt2.checkpoint.names import EXTENDED_WEIGHTS
from gpt2.checkpoint.native import load_module
from gpt2.inference.generate import generate
from gpt2.inference.sampling import SamplingParams
from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT
from gpt2.model.presets import PRESETS
from gpt2.train.config import OptimConfig
from gpt2.train.optim import Optimizer
from gpt2.train.weights import Weights

GPT3 = [name for name in PRESETS if name.startswith("gpt3")]


def shrunken(name: str) -> GPTConfig:
    """The same ratio of attention's width, the residual stream's and the MLP's, at a width of 48 or little more."""
    config = PRESETS[name]
    common = math.gcd(config.attention_width, config.n_embd)
    factor = -(-48 // (config.n_embd // common))
    width, attention = config.n_embd // common * factor, config.attention_width // common * factor
    heads = max(n for n in range(1, 9) if config.n_head % n == 0 and attention % n == 0)
    return GPTConfig(
        n_layer=4,
        n_embd=width,
        n_head=heads,
        head_dim=attention // heads,
        n_inner=config.n_inner * width // config.n_embd,
        vocab_size=BYTES.vocab_size,
        context_length=32,
        attention_pattern=("dense", "banded"),
        band_width=8,
    )


def train(config: GPTConfig, dtype: torch.dtype, steps: int = 6) -> tuple[GPT, list[float]]:
    """A few steps on one batch, as a run takes them."""
    torch.manual_seed(0)
    weights = Weights(GPT(config), dtype)
    optimizer = Optimizer(weights.master, OptimConfig(optimizer="adamw", learning_rate=3e-3))
    ids, losses = torch.randint(100, (4, 33)), []
    for _ in range(steps):
        weights.clear_gradients()
        loss = weights.worker(ids[:, :-1], ids[:, 1:])[0] / 128
        losses.append(loss.item())
        weights.backward(loss)
        weights.clip(1.0)
        optimizer.step(1.0)
        weights.publish()
    return weights.master, losses


@pytest.mark.parametrize(("name", "ratio"), [("gpt3-xl", 3072 / 2048), ("gpt3-13b", 5120 / 5140), ("gpt3-175b", 1.0)])
def test_shrunken_sizes_keep_the_ratios(name: str, ratio: float) -> None:
    small = shrunken(name)
    assert small.attention_width / small.n_embd == ratio
    assert small.n_inner == 4 * small.n_embd <= 4 * 257


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", GPT3)
def test_every_size_trains_is_saved_and_writes_the_same_when_loaded(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    module, losses = train(shrunken(name), dtype)
    assert losses[-1] < losses[0] - 0.3
    write_model(tmp_path, module)
    assert (tmp_path / EXTENDED_WEIGHTS).exists()
    again = load_module(tmp_path, read_config(tmp_path))
    assert again.config == module.config
    for tensor, loaded in zip(state_of(module).values(), state_of(again).values(), strict=True):
        assert torch.equal(tensor, loaded)
    params: dict[str, Any] = {"max_new_tokens": 28, "seed": 3, "ignore_eot": True}
    for temperature in (0.0, 0.8):
        texts = [
            generate(model, BYTES, [[1, 2, 3]], SamplingParams(temperature=temperature, **params))[0].tokens
            for model in (module, again)
        ]
        assert texts[0] == texts[1] and len(texts[0]) == 28
