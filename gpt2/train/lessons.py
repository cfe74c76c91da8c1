"""What a fine-tuning learns from: the base with its tokenizer, the examples, and those that are held out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpt2.checkpoint.adapters import is_adapter
from gpt2.checkpoint.find import find_folder
from gpt2.checkpoint.hf_config import read_config
from gpt2.checkpoint.names import weight_files
from gpt2.data.examples import ExampleSet, Kind, read_examples, split_examples
from gpt2.errors import UserError
from gpt2.model.config import GPTConfig
from gpt2.runtime import say
from gpt2.tokenizer.added import add_tokens
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.tokenizer.files import load_tokenizer
from gpt2.train.tune_config import TuneConfig, held_out_share

HASHED, BLOCK = 64, 2**16  # blocks of a weight file that tell it from others, and their bytes


@dataclass(frozen=True)
class Lessons:
    """`folder` holds the base, `shape` is the model's as it will be trained; of `val` there may be none."""

    folder: Path
    shape: GPTConfig
    tokenizer: Tokenizer
    train: ExampleSet
    val: ExampleSet | None

    @property
    def kind(self) -> Kind:
        return self.train.kind

    @property
    def tokens(self) -> int:
        """Of all training examples together, once."""
        return int(self.train.examples.positions.sum())


def open_lessons(config: TuneConfig, folder: Path | None = None) -> Lessons:
    """Read the base's shape and vocabulary, then the examples; `folder` is where the base lies, if that is known.

    UserError for whatever the user can mend: no base, examples that cannot be read, a kind that the method cannot do.
    """
    folder = folder or find_folder(config.model)
    if is_adapter(folder):
        raise UserError(f"{folder}: an adapter; make it one model with its base by gpt2 merge, and start from that")
    tokenizer = load_tokenizer(folder)
    if config.add_tokens:
        tokenizer = add_tokens(tokenizer, config.add_tokens)
    shape = replace(read_config(folder), dropout=config.dropout)
    shape = grown(config, shape, tokenizer)
    train = read_examples(config.data, tokenizer, shape.context_length, config.read_options)
    train, val = hold_out(config, train, tokenizer, shape)
    check_kind(config, train, val)
    if train.chat_template is not None:
        tokenizer = tokenizer.with_template(train.chat_template)
    return Lessons(folder, shape, tokenizer, train, val)


def grown(config: TuneConfig, shape: GPTConfig, tokenizer: Tokenizer) -> GPTConfig:
    """The shape with a row for each of the tokenizer's tokens; UserError for an adapter, which could not keep them."""
    more = tokenizer.vocab_size - shape.vocab_size
    if more <= 0:
        return shape
    if not config.add_tokens:
        what = f"{config.model}: its tokenizer has {tokenizer.vocab_size:,} tokens, the model {shape.vocab_size:,}"
        if config.method == "lora":
            raise UserError(f"{what}, and an adapter keeps no new rows: tune with --method full, or mend the tokenizer")
        say(f"{what}: rows are added")
    return replace(shape, vocab_size=tokenizer.vocab_size)


def hold_out(
    config: TuneConfig, examples: ExampleSet, tokenizer: Tokenizer, shape: GPTConfig
) -> tuple[ExampleSet, ExampleSet | None]:
    """(to train on, held out): the second from a file of its own, or a share of the prompts."""
    if config.val is not None:
        options = config.read_options
        if examples.kind == "label":
            options = replace(options, labels=examples.labels)
        val = read_examples(config.val, tokenizer, shape.context_length, options)
        if val.kind != examples.kind:
            raise UserError(f"{config.val}: {val.format}, but {config.data}: {examples.format}; give two of a kind")
        return examples, val
    share = held_out_share(config, len(examples))
    if share == 0.0 or (len(examples) < 2 and config.val_share is None):
        return examples, None
    return split_examples(examples, share, config.seed)


def check_kind(config: TuneConfig, train: ExampleSet, val: ExampleSet | None) -> None:
    """What a kind of examples asks for, and which settings mean nothing to it."""
    from gpt2.train.classify import check_labels

    if train.kind == "label":
        check_labels(train, val)
    for name, kind in (("beta", "preference"), ("lm_weight", "label")):
        if train.kind != kind and getattr(config, name) != getattr(TuneConfig, name):
            raise UserError(f"--{name}: {config.data} holds {train.format}; it is for {kind} examples alone")


def identity(config: TuneConfig, lessons: Lessons) -> dict[str, Any]:
    """What a run reads, so that it is not resumed with anything else."""
    found = {"train": lessons.train.hash, "tokenizer": lessons.tokenizer.hash}
    if lessons.val is not None:
        found["val"] = lessons.val.hash
    if config.method == "lora" or lessons.kind == "preference":  # what the checkpoints do not hold and the loss needs
        found["base"] = base_hash(lessons.folder)
    return found


def base_hash(folder: Path) -> str:
    """SHA-256 of the sizes of a model's weight files, and of blocks spread over them."""
    digest = hashlib.sha256()
    for path in weight_files(folder):
        size = path.stat().st_size
        digest.update(str(size).encode())
        with path.open("rb") as file:
            for part in range(HASHED):
                file.seek(max(0, size - BLOCK) * part // (HASHED - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()
