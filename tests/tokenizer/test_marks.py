"""The pattern without look-ahead, on marked text, gives what GPT-2's own pattern gives."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.tokenizer import bpe
from gpt2.tokenizer.marks import MARK, WHITE_SPACE, mark_cuts

PIECES = [
    *WHITE_SPACE,
    "  ",
    "\n\n",
    " \t ",
    "\x1c",
    "\x1f",
    "a",
    "B",
    "1",
    "'s",
    "'ll",
    "'",
    ".",
    "é",
    "中",
    "\ud800",
    "😀",
]


def test_only_the_last_of_several_white_spaces_before_other_text_is_cut_off():
    assert mark_cuts("a b  c\n\n\nd \n") == f"a b {MARK} c\n\n{MARK}\nd \n"
    assert mark_cuts("") == "" and mark_cuts(" ") == " " and mark_cuts("  ") == "  "
    assert mark_cuts("\u3000\u2003é") == f"\u3000{MARK}\u2003é"


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_marked_pieces_are_those_of_the_pattern_with_look_ahead(text: str):
    regex = pytest.importorskip("regex")

    own = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    plain = regex.compile(bpe.PLAIN_PATTERN)
    text = text.replace("\x1c", "-").replace("\x1f", "-")  # white space to the module regex, not to the engine
    assert [p for part in mark_cuts(text).split(MARK) for p in plain.findall(part)] == own.findall(text)


def test_a_real_vocabulary_gives_the_same_ids_with_and_without_marks(assets: Path, monkeypatch: pytest.MonkeyPatch):
    from gpt2.tokenizer.files import load_tokenizer

    tokenizer = load_tokenizer(assets / "gpt2-vocab")
    texts = [path.read_text("latin-1") for path in sorted((assets / "text").glob("*.txt"))]
    texts += ["".join(np.random.default_rng(seed).choice(PIECES, 400)) for seed in range(200)]
    texts += [f"  holds the mark {MARK}  itself  " * 20, " \n " * 1000 + "end", "x" * 5000, " " * 5000]
    monkeypatch.setattr(bpe, "MARKED_FROM", 10**9)
    without = [tokenizer.encode_array(text).tolist() for text in texts]
    monkeypatch.setattr(bpe, "MARKED_FROM", 0)
    assert [tokenizer.encode_array(text).tolist() for text in texts] == without
