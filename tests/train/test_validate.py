"""Validation over many processes: every token once, and no pass of rows that are only for show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import make

from gpt2.distributed.ranks import Ranks
from gpt2.train.validate import BATCH_TOKENS, validate


class Text:
    """A split of random tokens."""

    preceding, text_bytes = None, None

    def __init__(self, count: int) -> None:
        self.ids = np.random.default_rng(0).integers(0, 257, count)

    def __len__(self) -> int:
        return len(self.ids)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        return self.ids[start:stop]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_ranks_score_every_token_once_in_as_few_passes_as_there_are_rows_for(size: int) -> None:
    model, text = make(), Text(40_000)
    length = model.config.context_length
    windows, at_once = -(-(len(text) - 1) // length), BATCH_TOKENS["cpu"] // length
    every = -(-at_once // size) * size  # rows of a pass, the same number on each rank
    alone = validate(model, text, "cpu")  # type: ignore[arg-type]
    assert alone.targets == len(text) - 1
    nats, targets, passes = 0.0, 0, 0

    def scored(inputs: torch.Tensor, wanted: torch.Tensor) -> Any:
        nonlocal passes
        passes += 1
        return model(inputs, wanted)

    scored.config, scored.training, scored.eval, scored.train = model.config, False, model.eval, model.train  # type: ignore[attr-defined]
    for rank in range(size):
        passes = 0
        found = validate(scored, text, "cpu", ranks=Ranks(data_rank=rank, data_size=size))  # type: ignore[arg-type]
        nats, targets = nats + found.nats, targets + found.targets
        assert passes == -(-windows // every)
    assert targets == alone.targets
    assert nats == pytest.approx(alone.nats, rel=1e-5)
