"""A file of examples to learn from: read, turned into tokens, shown, and split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from gpt2.data.encoded import Encoded, Encodings, Pair, Pairs

if TYPE_CHECKING:
    from gpt2.tokenizer.bpe import Tokenizer

__all__ = ["Encoded", "Encodings", "ExampleSet", "Pair", "Pairs", "ReadOptions", "preview", "read_examples"]

Kind = Literal["text", "completion", "label", "preference"]
Loss = Literal["completion", "all"]
TooLong = Literal["error", "cut", "skip"]


@dataclass(frozen=True)
class ReadOptions:
    """How a file is read. `None`, "auto" and an empty mapping leave it to the file's content.

    `loss`: learn the completion (of messages: what the assistant says) or all tokens.
    `too_long`: what becomes of an example that the context cannot hold. A cut takes the beginning of the prompt, as a
        sliding window does, and of the completion's end only what else does not fit. A plain text loses nothing: it
        goes on in the next example; only "skip" leaves it out.
    `format`: "auto", or the file's layout: text, pairs (`input||output`), jsonl, json, csv, tsv.
    `columns`: role -> the file's own name of the field; the roles named decide what an example is (formats.SHAPES).
    `template`: what is put around the prompt's fields: "Q: {prompt}\\nA:", "{instruction}\\n{input}\\n".
    `labels`: the labels there may be, in the order of their numbers; None takes those of the file, sorted.
    """

    loss: Loss = "completion"
    too_long: TooLong = "error"
    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ExampleSet:
    """Examples of one kind. `examples[i]` is an Encoded, of preferences a Pair; `examples.positions` their lengths.

    `format` says in words what was recognised, `notes` what was cut, skipped or not read. `keys` uint64 (n,): equal
    for equal prompts (of a text: for parts of one document), so that a split never parts them. `hash` is that of the
    file's bytes, the options, the vocabulary and the context length. `chat_template` is the Jinja source that rendered
    the examples, where one did; a model tuned on them should carry it (Tokenizer.with_template).
    """

    kind: Kind
    format: str
    examples: Encodings | Pairs
    keys: NDArray[np.uint64]
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    hash: str = ""
    chat_template: str | None = None

    def __len__(self) -> int:
        return len(self.examples)


def read_examples(
    path: str | Path, tokenizer: Tokenizer, context_length: int, options: ReadOptions = ReadOptions()
) -> ExampleSet:
    """Read a file of any known form (formats.py) and encode it for a model of this context.

    Prompt and completion are encoded apart, the prompt exactly as `tokenizer.encode(prompt)` gives it to a user who
    writes with the model later. Where neither ends or begins with white space, one space goes in front of the
    completion. Raises UserError, with file and line, for what cannot be read or learned.
    """
    raise NotImplementedError


def split_examples(examples: ExampleSet, share: float, seed: int) -> tuple[ExampleSet, ExampleSet]:
    """(to train on, held out): about `share` of the examples held out, by distinct prompt, at least one prompt.

    A prompt's side depends on it and the seed alone, not on the order of the file. Of texts in fewer than 20 documents
    the last part is held out. Raises UserError where all examples have one prompt.
    """
    raise NotImplementedError


def preview(examples: ExampleSet, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """The first example as pieces of text, and whether each is learned; of a preference pair the chosen side."""
    raise NotImplementedError
