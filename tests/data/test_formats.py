"""Every form of example file: recognised by content, read as it was written, its broken line named."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.data.formats import Layout, read_rows, recognise
from gpt2.data.shapes import find_shape
from gpt2.errors import UserError

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x00"), min_size=1, max_size=20)
LINE = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="|"), min_size=1, max_size=20)
SOME_LINE = LINE.map(str.strip).filter(bool)
FIELDS = st.sampled_from(
    [("text",), ("prompt", "completion"), ("instruction", "input", "output"), ("prompt", "chosen", "rejected")]
)


def read(path: Path, data: str | bytes, layout: Layout | None = None) -> list[dict[str, Any]]:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return [row.fields for row in read_rows(path, layout or recognise(path))]


def table(names: tuple[str, ...], rows: list[tuple[str, ...]], delimiter: str) -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows([names, *rows])
    return file.getvalue()


@st.composite
def records(draw: st.DrawFn, cell: st.SearchStrategy[str]) -> list[dict[str, str]]:
    names = draw(FIELDS)
    rows = draw(st.lists(st.tuples(*[cell] * len(names)), min_size=1, max_size=5))
    return [dict(zip(names, row, strict=True)) for row in rows]


@given(records(ANY_TEXT), st.booleans(), st.sampled_from([None, 1]), st.booleans())
def test_json_is_read_as_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]], lines: bool, indent: int | None, bom: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "made"
    dump = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "\n\n".join(dump) if lines else json.dumps(rows, ensure_ascii=False, indent=indent) + "\n"
    assert read(path, "\ufeff" * bom + text) == rows
    assert recognise(path) == ("jsonl" if lines else "json")


@given(records(CELL), st.sampled_from([",", "\t", ";"]))
def test_tables_are_read_as_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]], delimiter: str
) -> None:
    delimiter = "," if len(rows[0]) == 1 and delimiter == ";" else delimiter
    path = tmp_path_factory.getbasetemp() / "made"
    names = tuple(rows[0])
    text = table(names, [tuple(row.values()) for row in rows], delimiter)
    if len(names) == 1:
        path = path.with_suffix(".tsv" if delimiter == "\t" else ".csv")
    assert read(path, text) == rows
    assert recognise(path) == ("tsv" if delimiter == "\t" else "csv")


@given(st.lists(st.tuples(SOME_LINE, SOME_LINE), min_size=1, max_size=5), st.sampled_from(["||", " || ", "||\t"]))
def test_pairs_are_read_as_written(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], bars: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "made"
    text = "".join(f"{left}{bars}{right}\r\n" for left, right in pairs)
    rows = [{"prompt": left, "completion": right} for left, right in pairs]
    assert read(path, text, "pairs") == rows
    if not text.lstrip().startswith(("{", "[")):
        assert recognise(path) == "pairs"


@given(st.lists(st.lists(SOME_LINE, min_size=1, max_size=3).map("\n\n".join), min_size=1, max_size=4))
def test_texts_are_read_as_written(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "made"
    rows = [{"text": text} for text in texts]
    assert read(path, "\n<|endoftext|>\n\n".join(texts) + "\n", "text") == rows
    paragraphs = [part for text in texts for part in text.split("\n\n")]
    assert read(path, "\n\n\n".join(texts), "paragraphs") == [{"text": part} for part in paragraphs]
    assert read(path, "\n".join(texts), "lines") == [{"text": part} for part in paragraphs]


def test_a_book_is_one_document(tmp_path: Path) -> None:
    book = "Chapter, the first\n\n[Enter a ghost]\n\nA || B is rare.\nEnd."
    assert read(tmp_path / "book", book) == [{"text": book}]
    assert read(tmp_path / "song", "[Chorus]\nLa la\n") == [{"text": "[Chorus]\nLa la"}]


def test_real_files(assets: Path) -> None:
    pairs = list(read_rows(assets / "finetune" / "e2e_valid.txt", recognise(assets / "finetune" / "e2e_valid.txt")))
    assert len(pairs) == 4672 and pairs[-1].line == 4672
    assert pairs[0].fields["prompt"] == "name : Alimentum | area : city centre | family friendly : no"
    path = assets / "finetune" / "instruction-data.json"
    rows = list(read_rows(path, recognise(path)))
    assert [row.fields for row in rows] == json.loads(path.read_text())
    assert (rows[1].line, rows[1].fields["instruction"][:10]) == (7, "Edit the f")


ONE = '{"prompt": "a", "completion": "b"}'
BROKEN = {
    "jsonl": (f"{ONE}\n\n{ONE[:-5]}\n", "line 3: expected a JSON object on this line"),
    "jsonl_number": (f"{ONE}\n3\n", "line 2: expected a JSON object with named fields, found 3"),
    "json": (
        f"[\n{ONE},\n{ONE[:-5]}\n]",
        "line 4: expected the object from line 3 to go on (Expecting value), found ']'",
    ),
    "json_comma": (f"[\n{ONE}\n{ONE}]", "line 3: expected a comma, or the end of the array"),
    "json_trailing": (f"[\n{ONE},\n]", "line 3: expected a JSON object ("),
    "json_cut_off": (f"[\n{ONE},", "line 2: expected a JSON object ("),
    "json_behind": (f"[\n{ONE}]\n[]", "line 3: expected nothing behind the array"),
    "json_deep": ('[{"text": ' + "[" * 100_000, "nested too deeply"),
    "pairs_none": ("a||b\nc|d\ne||f\n", "line 2: expected input||output, with || once; found none"),
    "pairs_two": ("a||b\nc||d||e\n", "line 2: expected input||output, with || once; found 2 of them"),
    "csv_short": ("prompt,completion\na,b\nc\n", "line 3: expected 2 columns (prompt, completion), found 1"),
    "csv_long": ('prompt,completion\n"a\nb",c\na,b,c\n', "line 4: expected 2 columns (prompt, completion), found 3"),
    "csv_quote": ('prompt,completion\na,b\n"c,d\ne,f\n', "line 3: expected a row of the table"),
    "csv_twice": ("prompt,completion,prompt\na,b,c\n", "line 1: expected a name for each column, all different"),
    "tsv": ("text\tlabel\na\n", "line 2: expected 2 columns (text, label), found 1"),
    "empty": (" \n\n", "empty; expected examples"),
    "latin": (b"one\ncaf\xe9\n", "line 2: not UTF-8 text (byte 0xe9)"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_line_is_named_with_what_was_expected(tmp_path: Path, case: str) -> None:
    data, expected = BROKEN[case]
    with pytest.raises(UserError) as error:
        read(tmp_path / "made", data)
    assert str(error.value).startswith(str(tmp_path / "made"))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_that_promises_more_than_prose_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 1: no column is known by its name in 'q,a'"):
        read(tmp_path / "made.csv", "q,a\n1,2\n")
    with pytest.raises(UserError, match="neither a JSON object nor an array"):
        read(tmp_path / "made.jsonl", "prose\n")
    with pytest.raises(UserError, match="No such file"):
        recognise(tmp_path / "none")
    with pytest.raises(UserError, match="Is a directory"):
        recognise(tmp_path)


def test_a_book_on_one_line_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "book").write_text("a, word, and " * 20_000)
    assert recognise(tmp_path / "book") == "text"


def test_a_named_layout_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "made").write_text(f"{ONE}\n")
    with pytest.raises(UserError, match="line 1: expected an array"):
        list(read_rows(tmp_path / "made", "json"))
    (tmp_path / "made").write_text("")
    assert list(read_rows(tmp_path / "made", "csv")) == []


def test_columns_by_other_names_make_a_table_recognised(tmp_path: Path) -> None:
    (tmp_path / "made").write_text("q,a\n1,2\n")
    assert recognise(tmp_path / "made") == "text"
    assert recognise(tmp_path / "made", ["q", "a"]) == "csv"


def test_a_table_may_have_one_column_quotes_or_blank_lines_in_front(tmp_path: Path) -> None:
    path = tmp_path / "made.csv"
    for text, columns in (("review\nfine\n", ["review"]), ('"text"\n"fine"\n', []), ("\n\ntext,id\nfine,1\n", [])):
        path.write_text(text)
        assert recognise(path, columns) == "csv"
        assert "fine" in next(read_rows(path, "csv")).fields.values()


def test_quotes_in_a_table_with_tabs_may_be_letters(tmp_path: Path) -> None:
    path = tmp_path / "made.tsv"

    def texts(table: str) -> list[str]:
        path.write_text(table)
        return [row.fields["text"] for row in read_rows(path, "tsv")]

    assert texts('text\tlabel\n"Yes .\tpos\nNo ."\tneg\n') == ['"Yes .', 'No ."']
    assert texts('text\tlabel\n"Hello" she said\tpos\n') == ['"Hello" she said']
    assert texts('text\tlabel\n"two\nlines"\tpos\n"a ""b"""\tneg\n') == ["two\nlines", 'a "b"']


def test_what_fields_mean() -> None:
    def form(*names: str, **columns: str) -> str:
        return find_shape(names, columns, "made line 1").form

    assert form("text") == "text"
    assert form("id", "text", "label") == "label"
    assert form("prompt", "completion") == form("Question", "Answer") == form("input", "output") == "completion"
    assert form("instruction", "input", "output", "text") == form("instruction", "output") == "instruction"
    assert form("messages") == "messages"
    assert form("prompt", "chosen", "rejected", "completion") == "preference"
    assert form("text", "label", text="text") == "text"
    assert form("q", "a", "text", prompt="q", completion="a") == "completion"
    with pytest.raises(UserError, match=r"made line 1: expected fields .*; found q, a"):
        form("q", "a")
    with pytest.raises(UserError, match=r"--columns promt=q: no such role \(did you mean 'prompt'\?\)"):
        form("q", "a", promt="q")
    with pytest.raises(
        UserError, match=r"made line 1: expected a field 'qu' \(prompt\) \(did you mean 'q'\?\); found q, a"
    ):
        form("q", "a", prompt="qu", completion="a")
    with pytest.raises(UserError, match="these roles make no example together"):
        form("q", "a", prompt="q", label="a")
