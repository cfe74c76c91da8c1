"""The loss of given text: every token once, the same in whatever pieces, equal to the module's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import make, state_of, write_model

from gpt2.checkpoint.hf_config import read_config
from gpt2.checkpoint.packed import pack_folder, pack_state
from gpt2.inference.pages import pages_for
from gpt2.inference.runners.torch import TorchRunner
from gpt2.inference.score import losses, mean_loss, windows

CONTEXT = 64
TEXTS = [list(range(5, 5 + CONTEXT + 1)), [1, 2], [7], [(i * i) % 257 for i in range(40)]]


@given(st.integers(0, 300), st.integers(1, 20))
def test_windows_predict_every_token_but_the_first_once(length: int, context: int) -> None:
    cut = windows(range(length), context)
    assert [token for window in cut for token in window[1:]] == list(range(1, length))
    assert all(2 <= len(window) <= context + 1 for window in cut)


def module_losses(module: Any, text: list[int]) -> list[float]:
    with torch.no_grad():
        logits = module(torch.tensor([text[:-1]]))[0, :, :257]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(text[1:]), reduction="none").tolist()


@pytest.mark.parametrize("chunk", [1, 7, CONTEXT])
def test_losses_are_the_modules_own_in_whatever_chunks(chunk: int) -> None:
    module = make(scale=5.0)
    runner = TorchRunner(module, pages_for(CONTEXT), max_tokens=CONTEXT, max_outputs=chunk)
    for text, found in zip(TEXTS, losses(runner, TEXTS), strict=True):
        expected = module_losses(module, text) if len(text) > 1 else []
        assert found == pytest.approx(expected, abs=1e-4)


def test_the_processors_runner_gives_the_same_and_the_mean_counts_tokens() -> None:
    cpu = pytest.importorskip("gpt2.inference.runners.cpu")
    module = make(scale=5.0)
    model = pack_state(module.config, {name: t.numpy() for name, t in state_of(module).items()}, "float32")
    runner = cpu.CpuRunner(model, pages_for(CONTEXT), max_tokens=16, max_outputs=16, threads=1)
    every = [loss for text in TEXTS if len(text) > 1 for loss in module_losses(module, text)]
    assert mean_loss(runner, TEXTS) == pytest.approx(sum(every) / len(every), abs=1e-4)


def test_nothing_to_predict_is_an_error(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    cpu = pytest.importorskip("gpt2.inference.runners.cpu")
    runner = cpu.CpuRunner(pack_folder(folder, read_config(folder)), 1, threads=1)
    with pytest.raises(ValueError, match="predicts nothing"):
        mean_loss(runner, [[3]])
