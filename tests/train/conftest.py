"""A small corpus of made-up text as shards, without a tokenizer: training needs only the ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt2.data.shards import Meta, SplitMeta
from gpt2.train.config import TrainConfig, compose

VOCABULARY = 61


def write_tokens(folder: Path, train: int = 6000, val: int = 900) -> Path:
    """A random walk over the vocabulary, so that there is something to learn."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    ids = (np.cumsum(rng.integers(-2, 3, train + val)) % VOCABULARY).astype("<u2")
    (folder / "train.bin").write_bytes(ids[:train].tobytes())
    (folder / "val.bin").write_bytes(ids[train:].tobytes())
    Meta(
        vocab_size=VOCABULARY,
        train=SplitMeta(("train.bin",), train, 1, 2 * train, None),
        val=SplitMeta(("val.bin",), val, 1, 2 * val, int(ids[train - 1])),
    ).save(folder)
    return folder


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens"))


TINY = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 16}


@pytest.fixture
def tiny(tokens: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """A config of a run that takes a second or two; keyword arguments change it."""

    def make(**changes: Any) -> TrainConfig:
        model = TINY | changes.pop("model", {})
        settings: dict[str, Any] = {
            "data": str(tokens),
            "out": str(tmp_path / "run"),
            "max_steps": 12,
            "batch_tokens": 128,
            "device": "cpu",
            "dtype": "float32",
            "model": model,
        }
        return compose(**(settings | changes))

    return make
