"""A small corpus of made-up text as shards, without a tokenizer: training needs only the ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_tokens import write_tokens

from gpt2.train.config import TrainConfig, compose


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
