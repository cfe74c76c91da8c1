"""Shards of made-up text without a tokenizer: training needs only the ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gpt2.data.shards import Meta, SplitMeta

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
