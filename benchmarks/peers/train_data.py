"""Real text as tokens for the training benchmark, or dice where the test data is not at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from gpt2.runtime import say
from peers.model_folder import gpt2_tokenizer

ASSETS = Path(os.environ.get("GPT2_ASSETS", Path(__file__).resolve().parents[3] / "shared" / "assets"))
TEXTS = ("benchmarks/wikitext2_valid.txt", "text/tinyshakespeare.txt", "text/austen-persuasion.txt")


def write_tokens(path: Path, vocabulary: int) -> Path:
    """Write token ids below `vocabulary` as a numpy array; smaller ones keep the commonest of GPT-2's tokens."""
    if ASSETS.is_dir():
        text = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in TEXTS)
        ids = commonest(np.array(gpt2_tokenizer().encode(text)), vocabulary)
    else:
        say(f"no test data at {ASSETS} (GPT2_ASSETS): training on dice, whose loss says little")
        ids = np.random.default_rng(0).integers(vocabulary, size=400_000)
    np.save(path, ids.astype(np.uint16))
    return path


def commonest(ids: np.ndarray, vocabulary: int) -> np.ndarray:
    """Ids renumbered by frequency where they do not fit, the rare ones all in one."""
    if ids.max() < vocabulary:
        return ids
    counts = np.bincount(ids)
    rank = np.empty_like(counts)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return np.minimum(rank, vocabulary - 1)[ids]
