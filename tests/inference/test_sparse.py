"""Layers that do not look back on everything: the plain loop, the oracle of the runners, past the band."""

from __future__ import annotations

import pytest
import torch
from tiny_models import BYTES, make

from gpt2.inference.generate import generate
from gpt2.inference.sampling import SamplingParams

SPARSE = {
    "banded": {"attention_pattern": ("dense", "banded"), "band_width": 6},
    "strided": {"attention_pattern": ("banded", "strided"), "band_width": 6, "attention_stride": 3},
}


@torch.no_grad()
@pytest.mark.parametrize("name", SPARSE)
def test_the_plain_loop_writes_past_the_band_what_reading_it_all_again_gives(name: str) -> None:
    module = make(scale=5.0, **SPARSE[name])
    prompts = [[5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 8, 9]]
    params = SamplingParams(max_new_tokens=30, temperature=0.0, ignore_eot=True)
    for prompt, result in zip(prompts, generate(module, BYTES, prompts, params), strict=True):
        text = list(prompt)
        for _ in range(30):
            text.append(int(module(torch.tensor([text]))[0, -1].argmax()))
        assert result.tokens == text[len(prompt) :]
