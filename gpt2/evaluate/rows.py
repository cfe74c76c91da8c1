"""Records of data files that know where they stand, and readers of the forms in which benchmarks are published."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from gpt2.errors import UserError, did_you_mean

Reader = Callable[[Sequence[Path]], "Iterator[Row]"]


class Row(dict[str, Any]):
    """A record. A field that is missing or of the wrong kind is a UserError that names file and line."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        super().__init__(values)
        self.where = where

    def __missing__(self, name: str) -> Any:
        near = did_you_mean(name, self)
        raise UserError(f"{self.where}: no column '{name}'{near}; it has {', '.join(map(str, self)) or 'none'}")

    def text(self, name: str) -> str:
        value = self[name]
        return value if isinstance(value, str) else self.refuse(name, "text")

    def texts(self, name: str) -> list[str]:
        value = self[name]
        if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
            self.refuse(name, "a list of texts")
        return list(value)

    def number(self, name: str) -> int:
        """A whole number, or one in quotes, or a truth value."""
        value = self[name]
        try:
            return int(value)
        except (TypeError, ValueError):
            return self.refuse(name, "a whole number")

    def row(self, name: str) -> Row:
        value = self[name]
        return Row(value, self.where) if isinstance(value, dict) else self.refuse(name, "an object")

    def rows(self, name: str) -> list[Row]:
        """A list of objects, or Hugging Face's form of it: an object of lists."""
        value = self[name]
        if isinstance(value, dict) and all(isinstance(part, list) for part in value.values()):
            value = [dict(zip(value, parts, strict=True)) for parts in zip(*value.values(), strict=True)]
        if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
            self.refuse(name, "a list of objects")
        return [Row(part, self.where) for part in value]

    def place(self, name: str, known: Sequence[str]) -> int:
        """The place of a label among those known."""
        value = str(self[name])
        places = {label: place for place, label in enumerate(known)}  # of a text, its letters: "" is none of them
        return places[value] if value in places else self.refuse(name, "one of " + ", ".join(known))

    def refuse(self, name: str, wanted: str) -> Any:
        raise UserError(f"{self.where}: column '{name}' is {json.dumps(self[name])[:60]}; expected {wanted}")


def open_text(path: Path) -> str:
    """The whole file as UTF-8 text, unpacked if it ends in .gz; UserError where it is not, or is empty."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:  # zlib's is neither of the two
            raise UserError(f"{path}: not a whole gzip file: {error}; fetch it again") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path} line {line}: not UTF-8: byte 0x{data[error.start]:02x}") from None
    if not text.strip():
        raise UserError(f"{path}: empty")
    return text


def numbered(path: Path) -> Iterator[tuple[str, str]]:
    """(file and line, line without its end); only line feeds end a line."""
    for number, line in enumerate(open_text(path).split("\n"), 1):
        yield f"{path} line {number}", line.removesuffix("\r")


def jsonl(paths: Sequence[Path]) -> Iterator[Row]:
    """One JSON object a line, in one file or several."""
    for path in paths:
        for where, line in numbered(path):
            if line.strip():
                yield Row(parse_object(line, where), where)


def parse_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: {json.dumps(value)[:40]}; expected an object of fields")
    return value


def json_object(path: Path) -> Row:
    """A file that is one JSON object; UserError with the line where it is not."""
    text = open_text(path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {error.lineno}: not JSON: {error.msg}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected one JSON object, found {type(value).__name__}")
    return Row(value, str(path))


def objects(paths: Sequence[Path], name: str) -> Iterator[Row]:
    """The objects of a list that a JSON file has under this name; each knows its place."""
    for path in paths:
        for number, row in enumerate(json_object(path).rows(name), 1):
            yield Row(row, f"{path} {name}[{number - 1}]")


def labelled(paths: Sequence[Path]) -> Iterator[Row]:
    """JSON lines in one file and their labels, line by line, in a second one: `label`."""
    records, labels = jsonl(paths[:1]), [line for _, line in numbered(paths[1]) if line.strip()]
    count = 0
    for count, row in enumerate(records, 1):
        if count > len(labels):
            raise UserError(f"{paths[1]}: {len(labels)} labels, but {row.where} is item {count}")
        yield Row({**row, "label": labels[count - 1]}, f"{row.where} with {paths[1].name}")
    if count != len(labels):
        raise UserError(f"{paths[1]}: {len(labels)} labels for the {count} items of {paths[0]}")


def table(delimiter: str, names: Sequence[str] = ()) -> Reader:
    """A reader of delimited files: their first line has the columns, or `names` are these."""

    def read(paths: Sequence[Path]) -> Iterator[Row]:
        for path in paths:
            rows = csv.reader(io.StringIO(open_text(path), newline=""), delimiter=delimiter, quoting=QUOTING[delimiter])
            try:
                columns = list(names) or next(rows)
                for cells in rows:
                    where = f"{path} line {rows.line_num}"
                    if cells and len(cells) != len(columns):
                        raise UserError(f"{where}: {len(cells)} columns, expected {len(columns)}: {', '.join(columns)}")
                    if cells:
                        yield Row(dict(zip(columns, cells, strict=True)), where)
            except csv.Error as error:
                raise UserError(f"{path} line {rows.line_num}: {error}") from None

    return read


QUOTING: dict[str, Literal[0, 3]] = {",": csv.QUOTE_MINIMAL, "\t": csv.QUOTE_NONE}


def plain_lines(paths: Sequence[Path]) -> Iterator[Row]:
    """Each line of text as `text`, its line end included; what stands behind the last line end is a line if any."""
    for path in paths:
        for number, line in enumerate(kept_lines(open_text(path)), 1):
            yield Row({"text": line}, f"{path} line {number}")


def kept_lines(text: str) -> list[str]:
    """Lines with their line feeds."""
    *whole, last = text.replace("\r\n", "\n").split("\n")
    return [line + "\n" for line in whole] + ([last] if last else [])


def parallel(paths: Sequence[Path]) -> Iterator[Row]:
    """Two files of lines that belong together: `source` and `target`."""
    first, second = ([line for _, line in numbered(path)] for path in paths[:2])
    for lines in (first, second):
        if lines[-1] == "":
            lines.pop()
    if len(first) != len(second):
        raise UserError(f"{paths[0]} has {len(first):,} lines, {paths[1]} {len(second):,}: they belong line to line")
    for number, (source, target) in enumerate(zip(first, second, strict=True), 1):
        yield Row({"source": source, "target": target}, f"{paths[0]} line {number}")
