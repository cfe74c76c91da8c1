"""A file of examples to learn from: read, turned into tokens, shown, and split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from gpt2.data.encoded import Encoded, Encodings, Pair, Pairs
from gpt2.data.example_tokens import Tokens, cut, encode_records, windows
from gpt2.data.formats import WORDS, Layout, Row, check_layout, read_rows, recognise
from gpt2.data.permutation import splitmix64
from gpt2.data.records import Record, RecordReader, unread
from gpt2.data.shapes import Shape, find_shape
from gpt2.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from gpt2.tokenizer.bpe import Tokenizer

__all__ = [
    "Encoded",
    "Encodings",
    "ExampleSet",
    "Pair",
    "Pairs",
    "ReadOptions",
    "preview",
    "read_examples",
    "split_examples",
]

Kind = Literal["text", "completion", "label", "preference"]
Loss = Literal["completion", "all"]
TooLong = Literal["error", "cut", "skip"]
KINDS: dict[str, Kind] = {"text": "text", "label": "label", "preference": "preference"}  # other forms: a completion
FEW_DOCUMENTS = 20  # with fewer a split takes the texts' end


@dataclass(frozen=True)
class ReadOptions:
    """How a file is read. `None`, "auto" and an empty mapping leave it to the file's content.

    `loss`: learn the completion (of messages: what the assistant says) or all tokens.
    `too_long`: what becomes of an example that the context cannot hold. A cut takes the beginning of the prompt, as a
        sliding window does, and of the completion's end only what else does not fit. A plain text loses nothing: it
        goes on in the next example; only "skip" leaves it out.
    `format`: "auto", or the file's layout: text, paragraphs, lines, pairs (`input||output`), jsonl, json, csv, tsv.
    `columns`: role -> the file's own name of the field; the roles named decide what an example is (shapes.SHAPES).
    `template`: what is put around the prompt's fields: "Q: {prompt}\\nA:", "{instruction}\\n{input}\\n".
    `labels`: the labels there may be, in the order of their numbers; None takes those of the file, sorted.
    """

    loss: Loss = "completion"
    too_long: TooLong = "error"
    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    labels: tuple[str, ...] | None = None

    def check(self) -> None:
        """Raise UserError naming the option that cannot be followed."""
        for name, value, choices in (
            ("loss", self.loss, get_args(Loss)),
            ("too-long", self.too_long, get_args(TooLong)),
        ):
            if value not in choices:
                raise UserError(f"--{name} {value}: unknown{did_you_mean(value, choices)}; choose {', '.join(choices)}")
        if self.labels is not None and len(set(self.labels)) < max(2, len(self.labels)):
            raise UserError(f"--labels {','.join(self.labels)}: expected at least two, all different")


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

    def take(self, rows: NDArray[np.int64]) -> ExampleSet:
        """The examples of these numbers, in this order."""
        return replace(self, examples=self.examples.take(rows), keys=self.keys[rows])


def read_examples(
    path: str | Path, tokenizer: Tokenizer, context_length: int, options: ReadOptions = ReadOptions()
) -> ExampleSet:
    """Read a file of any known form (formats.py) and encode it for a model of this context.

    Prompt and completion are encoded apart, the prompt exactly as `tokenizer.encode(prompt)` gives it to a user who
    writes with the model later. Where neither ends or begins with white space, one space goes in front of the
    completion. Raises UserError, with file and line, for what cannot be read or learned.
    """
    path = Path(path)
    options.check()
    layout = recognise(path, options.columns.values()) if options.format == "auto" else check_layout(options.format)
    rows = read_rows(path, layout)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{path}: no example in it; expected {WORDS[layout]}")
    shape = find_shape(first.fields, options.columns, f"{path} line {first.line}")
    kind = KINDS.get(shape.form, "completion")
    _check_kind(path, kind, options)
    reader = RecordReader(path, shape, tokenizer, options.template, options.columns)
    tokens = encode_records(_records(reader, chain([first], rows), options.labels), tokenizer)
    labels = _labels(path, tokens, options.labels) if kind == "label" else ()
    fitted, notes = _fitted(path, tokens, kind, context_length + 1, options.too_long)
    if not len(fitted.lines):
        raise UserError(f"{path}: nothing is left to learn ({'; '.join([*_counts(reader), *notes])})")
    return ExampleSet(
        kind,
        _words(layout, shape, reader),
        _as_examples(fitted, kind, labels, options.loss),
        fitted.keys,
        labels,
        (*_remarks(first, shape, tokenizer, kind), *_counts(reader), *notes),
        _hash(path, tokenizer, context_length, options, reader),
        reader.chat.source if reader.chats else None,
    )


def split_examples(examples: ExampleSet, share: float, seed: int) -> tuple[ExampleSet, ExampleSet]:
    """(to train on, held out): about `share` of the examples held out, never parted from others of the same prompt.

    Which ones depends on the prompts and the seed, not on their order in the file; where all have one prompt, on the
    whole examples. Of texts in fewer than 20 documents the last part is held out instead. Raises UserError where there
    are no two to part.
    """
    if not 0 < share < 1:
        raise UserError(f"--val-share {share}: must lie between 0 and 1")
    distinct, group = np.unique(examples.keys, return_inverse=True)
    if examples.kind == "text" and len(distinct) < FEW_DOCUMENTS:
        order, group = np.arange(len(examples))[::-1], np.arange(len(examples))
    else:
        if len(distinct) < 2:
            distinct, group = np.unique(_own_keys(examples), return_inverse=True)
        order = np.argsort(splitmix64(distinct ^ splitmix64(np.array([seed], np.uint64))), kind="stable")
    if len(order) < 2:
        what = "the text fills one example only" if examples.kind == "text" else "all examples are the same"
        raise UserError(
            f"{what}: none can be held out; give a validation file, or more data, or hold none out with --val_share 0"
        )
    held = np.zeros(len(order), bool)
    held[_first_of(order, np.bincount(group), share)] = True
    return examples.take(np.flatnonzero(~held[group])), examples.take(np.flatnonzero(held[group]))


def _first_of(order: NDArray[np.int64], sizes: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """Groups, in this order, that together have about `share` of all examples: none that has more of them alone."""
    wanted = max(1, round(share * int(sizes.sum())))
    fit = order[sizes[order] <= wanted]
    if not len(fit):
        return order[[int(sizes[order].argmin())]]
    chosen = fit[np.cumsum(sizes[fit]) <= wanted]
    return chosen[: len(order) - 1]


def _own_keys(examples: ExampleSet) -> NDArray[np.uint64]:
    """(n): equal for equal examples."""
    both = (((e.chosen, e.rejected) if isinstance(e, Pair) else (e,)) for e in examples.examples)
    digests = [hashlib.blake2b(b"".join(side.ids.tobytes() for side in e), digest_size=8).digest() for e in both]
    return np.frombuffer(b"".join(digests), np.uint64)


def preview(examples: ExampleSet, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """The first example as pieces of text, and whether each is learned; of a preference pair the chosen side."""
    first = examples.examples[0]
    example = first.chosen if isinstance(first, Pair) else first
    borders = np.flatnonzero(np.diff(example.wanted)) + 1
    parts = zip(np.split(example.ids, borders), np.split(example.wanted, borders), strict=True)
    return [(tokenizer.decode(ids), bool(wanted[0])) for ids, wanted in parts]


def _check_kind(path: Path, kind: Kind, options: ReadOptions) -> None:
    """Options that go with other kinds of examples than these."""
    if options.labels is not None and kind != "label":
        raise UserError(f"{path}: --labels was given, but no example has one (kind: {kind}); expected text, label")
    if options.loss == "all" and kind == "preference":
        raise UserError(f"{path}: --loss all does not go with preference pairs, which compare completions")


def _records(reader: RecordReader, rows: Iterator[Row], labels: tuple[str, ...] | None) -> Iterator[Record]:
    """The rows' records; a label that was not declared is refused where it stands."""
    for row in rows:
        record = reader.read(row)
        if record is None:
            continue
        if labels is not None and record.label not in labels:
            near = did_you_mean(record.label, labels)
            known = ", ".join(labels)
            raise UserError(f"{reader.path} line {row.line}: label {record.label!r}{near}; expected one of {known}")
        yield record


def _labels(path: Path, tokens: Tokens, declared: tuple[str, ...] | None) -> tuple[str, ...]:
    """The declared labels, or those of the file: whole numbers by value, words by the alphabet."""
    if declared is not None:
        return declared
    found = set(tokens.labels)
    if len(found) < 2:
        raise UserError(f"{path}: all texts have the label {min(found)!r}; expected at least two different ones")
    return tuple(sorted(found, key=int if all(map(str.isdecimal, found)) else str))


def _fitted(path: Path, tokens: Tokens, kind: Kind, room: int, too_long: TooLong) -> tuple[Tokens, list[str]]:
    """The examples as `room` ids hold them, and what to say of those that were longer."""
    long = tokens.longest() > room
    if not long.any():
        return tokens, []
    count, every = int(long.sum()), len(long)
    at = int(tokens.longest().argmax())
    what = "texts" if kind == "text" else "examples"
    said = (
        f"longer than the context of {room - 1} tokens: {count:,} of {every:,} {what} "
        f"(the longest, on line {tokens.lines[at]}: {tokens.longest()[at] - 1:,})"
    )
    if too_long == "skip":
        return tokens.take(np.flatnonzero(~long)), [f"{said}; left out"]
    if kind == "text":
        return windows(tokens, room), [f"{said}; they go on in the next example"]
    if too_long == "error":
        raise UserError(f"{path}: {said}; choose --too-long cut or skip")
    return cut(tokens, room), [f"{said}; cut"]


def _as_examples(tokens: Tokens, kind: Kind, labels: tuple[str, ...], loss: Loss) -> Encodings | Pairs:
    wanted = np.ones_like(tokens.learned) if loss == "all" else tokens.learned
    numbers = {label: number for number, label in enumerate(labels)}
    label = np.array([numbers.get(text, -1) for text in tokens.labels], np.int32)
    every = Encodings(tokens.ids, wanted, tokens.starts, tokens.ends, np.repeat(label, tokens.sides))
    return Pairs(every[::2], every[1::2]) if kind == "preference" else every


def _words(layout: Layout, shape: Shape, reader: RecordReader) -> str:
    """`JSON lines with prompt, completion`."""
    named = layout in ("jsonl", "json", "csv", "tsv")
    words = f"{WORDS[layout]} with {shape.describe()}" if named else WORDS[layout]
    if reader.chats:
        whose = "the model's own" if reader.tokenizer.chat_template else "the default"
        words += f", written by {whose} chat template"
    return words


def _remarks(first: Row, shape: Shape, tokenizer: Tokenizer, kind: Kind) -> Iterator[str]:
    """What a user might take for granted, and is not so."""
    if others := unread(first.fields, shape):
        yield f"not read: {', '.join(others)}"
    if tokenizer.eot_id is None and kind in ("completion", "preference"):
        yield "this vocabulary has no end-of-text token: where a completion ends cannot be learned"


def _counts(reader: RecordReader) -> list[str]:
    return [f"{what}: {count:,}" for what, count in reader.left_out.items() if count]


def _hash(path: Path, tokenizer: Tokenizer, context_length: int, options: ReadOptions, reader: RecordReader) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    template = reader.chat.source if reader.chats else None
    digest.update(repr((tokenizer.hash, context_length, options, template)).encode())
    return digest.hexdigest()
