"""The tokens of a run and the tokenizer that made them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

from gpt2.data.loader import Loader
from gpt2.data.mixture import Mixture, Part, expected_passes, parse_part
from gpt2.data.shards import Split, nanogpt_symbols, open_split
from gpt2.distributed.ranks import ALONE, Ranks
from gpt2.errors import UserError
from gpt2.runtime import say
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.tokenizer.files import load_tokenizer
from gpt2.train.config import TrainConfig


@dataclass(frozen=True)
class Corpus:
    """Both splits and the tokenizer that made them; of a mixture `parts` is what is trained on, `train` the first."""

    train: Split
    val: Split
    tokenizer: Tokenizer | None
    parts: tuple[Part, ...] = ()

    def training(self) -> dict[str, Split]:
        """Every text that is trained on, by what a message calls it."""
        return {f"the text {part.name}": part.split for part in self.parts} or {"train": self.train}

    def rows(self, config: TrainConfig, ranks: Ranks = ALONE) -> Loader | Mixture:
        """The training rows from their start, dealt out to the ranks."""
        length, rank, size = config.model.context_length, ranks.data_rank, ranks.data_size
        if self.parts:
            return Mixture(self.parts, length, config.seed, rank, size)
        return Loader(self.train, length, config.seed, rank, size)

    def tokens_per_epoch(self, config: TrainConfig) -> int:
        """Targets of one pass over all that is trained on."""
        return self.rows(config).tokens_per_epoch

    def describe_epochs(self, tokens: int) -> str:
        """How often a run of so many tokens reads each text: `0.44 epochs of cc, 2.9 of webtext`."""
        passes = expected_passes(self.parts or (Part("", self.train),), tokens)
        first, *others = (f"{count:.2f} epochs" + (f" of {name}" if name else "") for name, count in passes.items())
        return ", ".join([first, *(text.replace(" epochs", "") for text in others)])


def absolute(config: TrainConfig) -> TrainConfig:
    """The same settings with the data's folders named from the root, so that a run resumes from anywhere."""
    parts = (parse_part(text)[0] for text in config.mixture)
    weights = (text.rpartition("=")[2] for text in config.mixture)
    mixture = tuple(f"{_absolute(part)}={weight}" for part, weight in zip(parts, weights, strict=True))
    return replace(config, data=_absolute(config.data), mixture=mixture)


def _absolute(folder: str) -> str:
    return str(Path(folder).expanduser().resolve())


def open_corpus(config: TrainConfig) -> Corpus:
    """The folder that `gpt2 prepare` made (or nanoGPT's), with its tokenizer if it has one, or those of a mixture.

    Of a mixture `config.data` gives the held-out text and the tokenizer; UserError if a part was made with another.
    """
    data = Path(config.data)
    val = open_split(data, "val")
    parts = open_parts(config)
    for part in parts:
        check_alike(part.split, val)
    train = parts[0].split if parts else open_split(data, "train")
    return Corpus(train, val, find_tokenizer(data, config.init), parts)


def open_parts(config: TrainConfig) -> tuple[Part, ...]:
    """The parts of the mixture, named by the last word of their folder, or by all of it where that is not enough."""
    pairs = [parse_part(text) for text in config.mixture]
    short = [Path(folder).name for folder, _ in pairs]
    names = short if len(set(short)) == len(short) else [folder for folder, _ in pairs]
    if len(set(names)) < len(names):
        raise UserError(f"mixture: {max(names, key=names.count)} stands in it twice; give it one weight")
    return tuple(
        Part(name, open_split(folder, "train"), weight) for name, (folder, weight) in zip(names, pairs, strict=True)
    )


def check_alike(part: Split, val: Split) -> None:
    """The parts of a mixture share one vocabulary."""
    for name in ("vocab_size", "tokenizer_hash", "eot_id"):
        mine, theirs = getattr(part.meta, name), getattr(val.meta, name)
        if mine != theirs:
            raise UserError(
                f"mixture: {part.folder} was made with {name} {mine}, {val.folder} with {theirs}; prepare all of them "
                "with one --tokenizer"
            )


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
