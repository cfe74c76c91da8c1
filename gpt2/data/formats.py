"""Files of examples, whatever their layout: recognised by what is in them, read as rows of named fields.

A layout says where a row ends and how its fields are told apart:

    text        plain text; `<|endoftext|>` at a line's end ends a document, blank lines do not: a book is one document
    paragraphs  plain text in which blank lines end documents            (never recognised, only asked for)
    lines       plain text in which each line is a document              (never recognised, only asked for)
    pairs       lines `input||output`
    jsonl       a JSON object on each line
    json        an array of JSON objects
    csv, tsv    a header with the columns' names, then rows; a CSV may have semicolons for commas

What the fields mean is shapes.py's. A file's name decides only whether a line `text` is a table's header; one that
promises a table or JSON and holds neither is refused.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from gpt2.data.shapes import has_shape
from gpt2.errors import UserError, did_you_mean

Layout = Literal["text", "paragraphs", "lines", "pairs", "jsonl", "json", "csv", "tsv"]
WORDS: dict[Layout, str] = {
    "text": "plain text",
    "paragraphs": "plain text, a document each paragraph",
    "lines": "plain text, a document each line",
    "pairs": "input||output lines",
    "jsonl": "JSON lines",
    "json": "a JSON array",
    "csv": "CSV",
    "tsv": "TSV",
}
HEADER = 10_000  # characters of a table's first line, at most: a book may be one line
LOOKED_AT = 100  # lines from the beginning that decide what a file is
BARS = "||"
START_OF_TEXT, END_OF_TEXT = "<|startoftext|>", "<|endoftext|>"  # the first is gpt-2-simple's
_JSON_SPACE = re.compile(r"[ \t\r\n]*")


class Row(NamedTuple):
    """One record of a file: the line on which it begins, and its fields."""

    line: int
    fields: dict[str, Any]


def recognise(path: Path, columns: Iterable[str] = ()) -> Layout:
    """The layout of a file, by its first lines; `columns` are names that a table's header may have besides the known.

    Raises UserError for an empty file, or one whose name promises what is not in it.
    """
    head = [line for _, line in islice(lines(path), LOOKED_AT) if line.strip()]
    if not head:
        raise UserError(f"{path}: empty; expected examples to learn from")
    if head[0].lstrip().startswith("{"):
        return "jsonl"
    if re.match(r"\s*\[\s*([{\]]|$)", " ".join(head)):
        return "json"
    for layout, delimiter in (("tsv", "\t"), ("csv", ","), ("csv", ";")):
        names = [name.strip() for name in _header(head[0], delimiter)]
        if len(names) > 1 and (has_shape(names) or set(columns) & set(names)):
            return layout  # type: ignore[return-value]
    if 2 * sum(BARS in line for line in head) > len(head):
        return "pairs"
    return _named_otherwise(path, head[0], columns)


def _header(line: str, delimiter: str) -> list[str]:
    """The names in a table's first line; none where it is no table's."""
    try:
        return next(csv.reader([line[:HEADER]], delimiter=delimiter), [])
    except csv.Error:
        return []


def read_rows(path: Path, layout: Layout) -> Iterator[Row]:
    """The file's rows, one at a time. Raises UserError, with file and line, for what its layout does not allow."""
    reader: Callable[[Path], Iterator[Row]] = READERS[layout]
    return reader(path)


def check_layout(name: str) -> Layout:
    """A layout by its name; UserError for an unknown one."""
    known = get_args(Layout)
    if name not in known:
        raise UserError(f"--format {name}: unknown{did_you_mean(name, known)}; choose auto, {', '.join(known)}")
    return name  # type: ignore[return-value]


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line without its end) of a UTF-8 file; only line feeds end lines, a byte-order mark is dropped."""
    try:
        with path.open("rb") as file:
            for number, data in enumerate(file, 1):
                try:
                    line = data.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    byte = f"byte 0x{data[error.start]:02x}"
                    raise UserError(f"{path} line {number}: not UTF-8 text ({byte}); save it as UTF-8") from None
                yield number, line.rstrip("\r\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a file of examples") from None


def _named_otherwise(path: Path, first: str, columns: Iterable[str]) -> Layout:
    """Plain text, unless the name says that it should be more: prose is no likely content of a .csv file."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        names = [name.strip() for name in _header(first, "\t" if suffix == ".tsv" else ",")]
        if has_shape(names) or set(columns) & set(names):
            return "tsv" if suffix == ".tsv" else "csv"
        raise UserError(
            f"{path} line 1: no column is known by its name in {first[:60]!r}; say which is which with "
            "--columns prompt=NAME,completion=NAME, or read it as it stands with --format text"
        )
    if suffix in (".json", ".jsonl", ".ndjson"):
        raise UserError(f"{path} line 1: neither a JSON object nor an array of them: {first[:40]!r}")
    return "text"


def _documents(path: Path) -> Iterator[Row]:
    for row in _between(path, _before_mark):
        yield Row(row.line, {"text": row.fields["text"].removeprefix(START_OF_TEXT).removeprefix("\n")})


def _before_mark(line: str) -> str | None:
    end = line.rstrip()
    return end.removesuffix(END_OF_TEXT) if end.endswith(END_OF_TEXT) else None


def _paragraphs(path: Path) -> Iterator[Row]:
    return _between(path, lambda line: None if line.strip() else "")


def _between(path: Path, last_part: Callable[[str], str | None]) -> Iterator[Row]:
    """Texts without blank lines around them; one of white space alone is none.

    `last_part(line)` is what a line that ends a text has of it, None for every other line.
    """
    begin, held = 1, list[str]()
    for number, line in lines(path):
        last = last_part(line)
        part = line if last is None else last
        if (held and last is None) or part.strip():
            begin = begin if held else number
            held.append(part)
        if last is not None:
            yield from _document(begin, held)
            held = []
    yield from _document(begin, held)


def _document(begin: int, held: list[str]) -> Iterator[Row]:
    if held:
        yield Row(begin, {"text": "\n".join(held).rstrip("\n")})


def _single_lines(path: Path) -> Iterator[Row]:
    return (Row(number, {"text": line}) for number, line in lines(path) if line.strip())


def _pairs(path: Path) -> Iterator[Row]:
    """White space around the bars belongs to neither side."""
    for number, line in lines(path):
        parts = line.split(BARS)
        if len(parts) == 2:
            yield Row(number, {"prompt": parts[0].strip(), "completion": parts[1].strip()})
        elif line.strip():
            found = "none" if len(parts) == 1 else f"{len(parts) - 1} of them"
            raise UserError(f"{path} line {number}: expected input{BARS}output, with {BARS} once; found {found}")


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", str(error))
            raise UserError(f"{path} line {number}: expected a JSON object on this line ({reason})") from None
        yield Row(number, _object(value, f"{path} line {number}"))


def _json_array(path: Path) -> Iterator[Row]:
    """One object after the other: a large array is never all there as Python objects."""
    text = "\n".join(line for _, line in lines(path))
    first = _skip(text, 0)
    if not text.startswith("[", first):
        raise UserError(
            f"{path} line {_line(text, first)}: expected an array, [{{...}}, ...]; one object a line is --format jsonl"
        )
    begin = _skip(text, first + 1)
    line = 1 + text.count("\n", 0, begin)
    end = begin
    while not text.startswith("]", end):
        value, end = _decoded(text, begin, path)
        yield Row(line, _object(value, f"{path} line {line}"))
        end = _skip(text, end)
        if text.startswith(",", end):
            following = _skip(text, end + 1)
            line, begin = line + text.count("\n", begin, following), following
        elif not text.startswith("]", end):
            raise _wrong_json(text, end, path, "a comma, or the end of the array")
    if text[end + 1 :].strip():
        raise _wrong_json(text, _skip(text, end + 1), path, "nothing behind the array")


def _decoded(text: str, begin: int, path: Path) -> tuple[Any, int]:
    """The JSON value that begins at this place, and where it ends."""
    try:
        return json.JSONDecoder().raw_decode(text, begin)
    except RecursionError:
        raise _wrong_json(text, begin, path, "a JSON object (nested too deeply)") from None
    except ValueError as error:
        place = getattr(error, "pos", begin)
        expected = f"a JSON object ({getattr(error, 'msg', error)})"
        if text.count("\n", begin, place):
            expected = f"the object from line {_line(text, begin)} to go on ({getattr(error, 'msg', error)})"
        raise _wrong_json(text, place, path, expected) from None


def _wrong_json(text: str, place: int, path: Path, expected: str) -> UserError:
    found = text[place : place + 30].partition("\n")[0] or "the end of the line or file"
    return UserError(f"{path} line {_line(text, place)}: expected {expected}, found {found!r}")


def _line(text: str, place: int) -> int:
    return 1 + text.count("\n", 0, place)


def _skip(text: str, place: int) -> int:
    """The next place that is not white space."""
    found = _JSON_SPACE.match(text, place)
    return found.end() if found else place


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object with named fields, found {json.dumps(value)[:40]}")
    return value


def _csv(path: Path) -> Iterator[Row]:
    header = next((line for _, line in lines(path) if line.strip()), "")
    return _table(path, ";" if header.count(";") > header.count(",") else ",")


def _tsv(path: Path) -> Iterator[Row]:
    return _table(path, "\t", csv.QUOTE_NONE if _has_stray_quotes(path) else csv.QUOTE_MINIMAL)


def _has_stray_quotes(path: Path) -> bool:
    """Whether a table with tabs has quotes that are letters: one that its cell does not end with, every line a row."""
    stray, tabs = False, None
    for _, line in lines(path):
        if line.strip():
            tabs = line.count("\t") if tabs is None else tabs
            if line.count("\t") != tabs:
                return False  # a quoted cell goes over several lines
            stray |= any(cell.startswith('"') and not (cell[1:].endswith('"')) for cell in line.split("\t"))
    return stray


def _table(path: Path, delimiter: str, quoting: Literal[0, 3] = csv.QUOTE_MINIMAL) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    rows = csv.reader((line + "\n" for _, line in lines(path)), delimiter=delimiter, quoting=quoting, strict=True)
    begin = 1
    try:
        names = [name.strip() for name in next(filter(_filled, rows), [])]
        if len(set(names)) < len(names) or not all(names):
            raise UserError(
                f"{path} line {rows.line_num}: expected a name for each column, all different; found {', '.join(names)}"
            )
        begin = rows.line_num + 1
        for cells in rows:
            if cells and len(cells) != len(names):
                expected = f"expected {len(names)} columns ({', '.join(names)})"
                raise UserError(f"{path} line {begin}: {expected}, found {len(cells)}")
            if cells:
                yield Row(begin, dict(zip(names, cells, strict=True)))
            begin = rows.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path} line {begin}: expected a row of the table ({error})") from None


def _filled(cells: list[str]) -> bool:
    return any(cell.strip() for cell in cells)


READERS: dict[Layout, Callable[[Path], Iterator[Row]]] = {
    "text": _documents,
    "paragraphs": _paragraphs,
    "lines": _single_lines,
    "pairs": _pairs,
    "jsonl": _json_lines,
    "json": _json_array,
    "csv": _csv,
    "tsv": _tsv,
}
