"""The tokens of a run and the tokenizer that made them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from gpt2.data.shards import Split, nanogpt_symbols, open_split
from gpt2.errors import UserError
from gpt2.runtime import say
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.tokenizer.files import load_tokenizer
from gpt2.train.config import TrainConfig


@dataclass(frozen=True)
class Corpus:
    """Both splits and the tokenizer that made them."""

    train: Split
    val: Split
    tokenizer: Tokenizer | None


def open_corpus(config: TrainConfig) -> Corpus:
    """The folder that `gpt2 prepare` made (or nanoGPT's), with its tokenizer if it has one."""
    data = Path(config.data)
    return Corpus(open_split(data, "train"), open_split(data, "val"), find_tokenizer(data, config.init))


def find_tokenizer(data: Path, init: str | None) -> Tokenizer | None:
    """Ours beside the shards, nanoGPT's characters, or that of the model that goes on; without one no samples come."""
    if (data / "tokenizer").is_dir():
        return load_tokenizer(data / "tokenizer")
    symbols = nanogpt_symbols(data)
    if symbols:
        return Tokenizer.from_characters(symbols)
    if init is not None:
        with contextlib.suppress(UserError):
            return load_tokenizer(Path(init))
    say(f"{data}: no tokenizer beside the tokens; put one into {data / 'tokenizer'} to get samples and a whole model")
    return None
