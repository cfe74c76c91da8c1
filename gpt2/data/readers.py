"""Documents out of items, a piece at a time: memory does not grow with the file or with the document."""

from __future__ import annotations

import codecs
import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gpt2.data.sources import Item
from gpt2.errors import UserError, did_you_mean

BLOCK_BYTES = 1 << 20
PIECE_CHARS = 1 << 20


class Piece(NamedTuple):
    """A document, or a part of a long one."""

    text: str
    starts: bool
    ends: bool


@dataclass
class Corpus:
    """All items as one stream of pieces, which can be read again and again. `read` is the progress in `size`."""

    items: list[Item]
    text_column: str = "text"
    encoding: str = "utf-8"
    errors: str = "strict"
    read: int = field(default=0, init=False)

    @property
    def size(self) -> int:
        return sum(item.size for item in self.items)

    def pieces(self) -> Iterator[Piece]:
        """Pieces of at most PIECE_CHARS characters, documents of white space alone left out.

        A long document is cut before white space, where no token of GPT-2's pattern reaches across, so that the
        pieces' tokens are the document's. (Only 65,536 characters without any white space are cut elsewhere.)
        Raises UserError, with file and place, for what cannot be read.
        """
        self.read = 0
        for item in self.items:
            yield from cut_pieces(self._segments(item))

    def _segments(self, item: Item) -> Iterator[tuple[str, bool]]:
        if item.kind == "text":
            yield from split_at_separators(self._decoded(item))
        elif item.kind == "jsonl":
            yield from ((text, True) for text in self._jsonl(item))
        elif item.kind == "parquet":
            yield from ((text, True) for text in self._parquet(item))
        elif item.kind == "rows":
            yield from ((text, True) for text in self._rows(item))
        else:
            yield from ((text, True) for text in self._csv(item, "\t" if item.kind == "tsv" else ","))

    def _decoded(self, item: Item) -> Iterator[str]:
        """The file's text, block by block. A byte-order mark is dropped; nothing else is changed."""
        decoder = codecs.getincrementaldecoder(self.encoding)(self.errors)
        before = 0  # bytes of the file that the decoder had seen, and used up, before this block
        first = True
        with item.path.open("rb") as file:
            while True:
                block = file.read(BLOCK_BYTES)
                pending = len(decoder.getstate()[0])
                try:
                    text = decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    raise self._undecodable(item, before - pending + error.start, error) from None
                before += len(block)
                self.read += len(block)
                if first and text:
                    text, first = text.removeprefix("\ufeff"), False
                yield text
                if not block:
                    return

    def _undecodable(self, item: Item, offset: int, error: UnicodeDecodeError) -> UserError:
        byte = error.object[error.start]
        return UserError(
            f"{item.name}: not {self.encoding} at byte offset {offset:,} (0x{byte:02x}): give its --encoding, such "
            f"as latin-1 or utf-16, or --errors replace"
        )

    def _jsonl(self, item: Item) -> Iterator[str]:
        for number, line in enumerate(_lines(self._decoded(item)), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{item.name}:{number}: not valid JSON: {error}") from None
            if isinstance(row, dict):
                row = self._cell(row, f"{item.name}:{number}")
            yield from _text(row, f"{item.name}:{number}", self.text_column)

    def _csv(self, item: Item, delimiter: str) -> Iterator[str]:
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        reader = csv.reader(_lines(self._decoded(item)), delimiter=delimiter)
        try:
            header = next(reader, [])
            where = self._column(header, item.name)
            for row in reader:
                if row and len(row) <= where:
                    raise UserError(f"{item.name}:{reader.line_num}: this row has no column '{self.text_column}'")
                yield from row[where : where + 1]
        except csv.Error as error:
            raise UserError(f"{item.name}:{reader.line_num}: not valid CSV: {error}") from None

    def _parquet(self, item: Item) -> Iterator[str]:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise UserError(f"{item.name}: Parquet needs pyarrow: pip install 'gpt2[data]'") from None
        try:
            file = parquet.ParquetFile(item.path)
            self._column(file.schema_arrow.names, item.name)
            number, rows = 0, max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=256, columns=[self.text_column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield from _text(value, f"{item.name}: row {number}", self.text_column)
                self.read += item.size * len(batch) // rows
        except pyarrow.ArrowException as error:
            raise UserError(f"{item.name}: not a readable Parquet file: {error}") from None

    def _rows(self, item: Item) -> Iterator[str]:
        for number, row in enumerate(item.rows, start=1):
            self.read += 1
            where = f"{item.name}: row {number}"
            yield from _text(self._cell(row, where), where, self.text_column)

    def _cell(self, row: dict[str, Any], where: str) -> Any:
        self._column(list(row), where)
        return row[self.text_column]

    def _column(self, names: list[str], where: str) -> int:
        if self.text_column in names:
            return names.index(self.text_column)
        columns = ", ".join(map(str, names)) or "none"
        near = did_you_mean(self.text_column, names)
        raise UserError(f"{where}: no column '{self.text_column}'{near}; --text-column NAME chooses from: {columns}")


def _text(value: Any, where: str, column: str) -> Iterator[str]:
    """The value if it is text, nothing if it is null."""
    if isinstance(value, str):
        yield value
    elif value is not None:
        raise UserError(f"{where}: column '{column}' holds {type(value).__name__}, not text; see --text-column")


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    """Lines with their "\\n". Only that ends one: JSON strings may hold Unicode's other line ends."""
    held = ""
    for block in blocks:
        *whole, held = (held + block).split("\n")
        yield from (line + "\n" for line in whole)
    if held:
        yield held


# A line of its own, as in TinyStories. Text files only: in tables a row is a document.
_SEPARATOR = "\n<|endoftext|>"
_REST_OF_SEPARATOR = re.compile(r"[ \t\r]{0,32}(?=\n|\Z)")
_LONGEST_SEPARATOR = 64


def split_at_separators(blocks: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """(text, whether a document ends after it): documents end at each line `<|endoftext|>` and at the end.

    The separator's line goes, and blank lines after it; all other text stays as it is.
    """
    return _without_leading_lines(_split_at_separators(blocks))


def _split_at_separators(blocks: Iterable[str]) -> Iterator[tuple[str, bool]]:
    held = "\n"  # stands before the first line, which may be a separator; taken off again below
    for block in blocks:
        held += block
        cut = held.rfind("\n")  # what follows may be the beginning of a separator
        if cut < 0 or len(held) - cut > _LONGEST_SEPARATOR:
            cut = len(held)
        yield from _split_lines(held[:cut], ends=False)
        held = held[cut:]
    yield from _split_lines(held, ends=True)


def _split_lines(text: str, ends: bool) -> Iterator[tuple[str, bool]]:
    """Cut whole lines of text at separators; `ends` tells of the last piece."""
    before, *others = text.split(_SEPARATOR)  # many times faster than a search for the whole expression
    for other in others:
        rest = _REST_OF_SEPARATOR.match(other)
        if rest is None:  # the line goes on: it only begins like a separator
            before += _SEPARATOR + other
        else:
            yield before, True
            before = other[rest.end() :]
    yield before, ends


def _without_leading_lines(segments: Iterable[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
    first, at_start = True, True
    for text, ends in segments:
        if at_start and text:
            text = text[1:] if first else text.lstrip("\r\n")
            at_start = not text and not first
            first = False
        yield text, ends
        if ends:
            first, at_start = False, True


_SAFE_CUT = re.compile(r"(?s:.*)\S(?=[ \n])")


def cut_pieces(segments: Iterable[tuple[str, bool]]) -> Iterator[Piece]:
    """Join the segments of each document and cut it anew into pieces of at most PIECE_CHARS."""
    held, starts = "", True
    for text, ends in segments:
        held += text
        while len(held) > PIECE_CHARS:
            found = _SAFE_CUT.match(held, max(0, PIECE_CHARS - 65536), PIECE_CHARS)
            cut = found.end() if found else PIECE_CHARS
            yield Piece(held[:cut], starts, False)
            held, starts = held[cut:], False
        if ends:
            if not (starts and (not held or held.isspace())):
                yield Piece(held, starts, True)
            held, starts = "", True
