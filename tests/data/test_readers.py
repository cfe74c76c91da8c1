"""Documents out of every form of file, in pieces that lose nothing, and errors that name the place."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.data import readers
from gpt2.data.readers import Corpus, cut_pieces, split_at_separators
from gpt2.data.sources import Item, expand
from gpt2.errors import UserError

BLOCKS = st.lists(
    st.sampled_from(["<|endoftext|>", "\n", "\n\n", "\r\n", "<|endof", "text|>", "a", "b c", " ", "x" * 70]),
    max_size=14,
)


def documents(path: Path, data: bytes | str | None = None, **settings: str) -> list[str]:
    if data is not None:
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    found: list[str] = []
    for piece in Corpus(expand([str(path)], lambda: path), **settings).pieces():
        if piece.starts:
            found.append("")
        found[-1] += piece.text
    return found


def plainly_split(text: str) -> list[str]:
    """The rule, line by line: what the streaming version must equal."""
    found, lines, fresh = [""], text.split("\n"), True
    for number, line in enumerate(lines):
        if line.startswith("<|endoftext|>") and not line.removeprefix("<|endoftext|>").strip(" \t\r"):
            if not fresh:
                found[-1] = found[-1][:-1]
            found.append("")
            fresh = True
        else:
            found[-1] += line + ("\n" if number < len(lines) - 1 else "")
            fresh = False
    return [found[0], *(document.lstrip("\r\n") for document in found[1:])]


@given(BLOCKS)
def test_separator_lines_end_documents_however_the_blocks_fall(blocks: list[str]):
    found = [""]
    for text, ends in split_at_separators(blocks):
        found[-1] += text
        if ends:
            found.append("")
    assert found.pop() == ""
    assert found == plainly_split("".join(blocks))


def test_tinystories_form(tmp_path: Path):
    text = "One day.\nEnd.\n<|endoftext|>\n\nTwo <|endoftext|> is inside.\n<|endoftext|>\nThree."
    assert documents(tmp_path / "s.txt", text) == ["One day.\nEnd.", "Two <|endoftext|> is inside.", "Three."]


def test_a_text_file_is_one_document_and_stays_as_it_is(tmp_path: Path):
    text = "\n\n  Title\r\n\r\nend \n\n"
    assert documents(tmp_path / "a.txt", text) == [text]
    assert documents(tmp_path / "bom.txt", b"\xef\xbb\xbfhello") == ["hello"]


@given(st.lists(st.sampled_from([" ", "\n", "word", "é", "\n\n"]), max_size=200).map("".join))
def test_pieces_are_small_lose_nothing_and_begin_at_white_space(text: str):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "PIECE_CHARS", 40)
        pieces = list(cut_pieces([(text[:33], False), (text[33:], True)]))
    assert "".join(piece.text for piece in pieces) == ("" if text.isspace() else text)
    assert all(len(piece.text) <= 40 for piece in pieces)
    assert [piece.starts for piece in pieces] == [True, *[False] * (len(pieces) - 1)][: len(pieces)]
    assert [piece.ends for piece in pieces] == [*[False] * (len(pieces) - 1), True][-len(pieces) :][: len(pieces)]
    for left, right in itertools.pairwise(pieces):
        window = left.text + right.text[:1]
        if any(not a.isspace() and b in " \n" for a, b in itertools.pairwise(window)):
            assert right.text[0] in " \n" and not left.text[-1].isspace()


def test_jsonl_gives_a_document_a_row_strings_as_rows_too_and_nulls_none(tmp_path: Path):
    lines = [json.dumps({"text": "a\u2028b\n"}), "", '"bare"', json.dumps({"text": None}), json.dumps({"text": "é"})]
    assert documents(tmp_path / "x.jsonl", "\n".join(lines)) == ["a\u2028b\n", "bare", "é"]


def test_csv_and_tsv_with_quoted_line_ends(tmp_path: Path):
    assert documents(tmp_path / "x.csv", 'id,text\n1,"a\nb, c"\n2,d\n') == ["a\nb, c", "d"]
    assert documents(tmp_path / "x.tsv", "body\tid\nhello\t1\n", text_column="body") == ["hello"]


def test_parquet(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"id": [1, 2, 3], "text": ["a", None, "b"]}), path)
    assert documents(path) == ["a", "b"]
    with pytest.raises(UserError, match=r"no column 'body'; --text-column NAME chooses from: id, text"):
        documents(path, text_column="body")
    with pytest.raises(UserError, match=r"row 1: column 'id' holds int, not text"):
        documents(path, text_column="id")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        documents(path, b"not parquet")


def test_rows_of_a_dataset():
    item = Item("hf:x", "rows", 2, "x", rows=[{"text": "a"}, {"text": "b"}])
    assert [piece.text for piece in Corpus([item]).pieces()] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", '{"text": "a"}\n{"text": oops}\n', r"x\.jsonl:2: not valid JSON"),
        ("x.jsonl", '{"txt": "a", "id": 1}\n', r"x\.jsonl:1: no column 'text' \(did you mean 'txt'\?\); .*: txt, id$"),
        ("x.jsonl", "[1]\n", r"x\.jsonl:1: column 'text' holds list, not text"),
        ("x.csv", "a,b\n1,2\n", r"x\.csv: no column 'text'; .*: a, b$"),
        ("x.csv", "id,text\n1,a\n2\n", r"x\.csv:3: this row has no column 'text'"),
        ("x.txt", b"fine\xff", r"x\.txt: not utf-8 at byte offset 4 \(0xff\).*--encoding.*--errors"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_place(tmp_path: Path, name: str, content: bytes | str, said: str):
    with pytest.raises(UserError, match=said):
        documents(tmp_path / name, content)


@pytest.mark.parametrize("offset", [0, 1, 6, 7, 8, 9, 20])
def test_the_byte_offset_is_right_across_blocks(tmp_path: Path, offset: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 4)
    text = ("é" * 20).encode()
    start = offset // 2 * 2
    with pytest.raises(UserError, match=rf"offset {start} "):
        documents(tmp_path / "x.txt", text[:start] + b"\xe9 " + text[start:])


def test_a_file_that_ends_inside_a_character_is_not_utf8(tmp_path: Path):
    with pytest.raises(UserError, match="byte offset 2 "):
        documents(tmp_path / "x.txt", "abé".encode()[:-1])


def test_encoding_and_errors_are_the_way_out(tmp_path: Path):
    path = tmp_path / "x.txt"
    path.write_bytes("né".encode("latin-1"))
    assert documents(path, encoding="latin-1") == ["né"]
    assert documents(path, errors="replace") == ["n\ufffd"]
    assert documents(path, errors="ignore") == ["n"]
    assert documents(path, "né".encode("utf-16"), encoding="utf-16") == ["né"]


def test_progress_counts_every_byte(tmp_path: Path):
    (tmp_path / "a.txt").write_text("abc")
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n')
    corpus = Corpus(expand([str(tmp_path)], lambda: tmp_path))
    list(corpus.pieces())
    assert corpus.read == corpus.size == 17
