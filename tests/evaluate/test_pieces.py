"""Long texts are cut where a reader would pause, and nothing of them is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpt2.evaluate.pieces import pieces
from gpt2.tokenizer.bpe import Tokenizer

BYTES = Tokenizer.bytes_only()


@given(st.text("ab .\n\u00e9", max_size=80), st.integers(1, 30))
def test_pieces_fit_and_together_are_the_text_without_white_space_between(text: str, room: int) -> None:
    found = list(pieces(text, BYTES, room))
    assert all(piece and piece == piece.strip() for piece in found)
    assert all(len(piece.encode()) <= room or len(piece) == 1 for piece in found)
    assert "".join("".join(found).split()) == "".join(text.split())


def test_a_piece_ends_at_a_paragraph_else_a_sentence_else_a_word() -> None:
    assert list(pieces("One two.\n\nThree. Four", BYTES, 16)) == ["One two.", "Three. Four"]
    assert list(pieces("One two. Three four", BYTES, 14)) == ["One two.", "Three four"]
    assert list(pieces("One two three", BYTES, 9)) == ["One two", "three"]
    assert list(pieces("x" * 10, BYTES, 4)) == ["xxxx", "xxxx", "xx"]
    assert list(pieces("it fits. So it is whole", BYTES, 99)) == ["it fits. So it is whole"]
    assert list(pieces(" \n ", BYTES, 9)) == []


def test_a_long_text_is_cut_in_time_that_grows_as_it_does() -> None:
    text = "The ship went out to sea. " * 20_000
    assert len(list(pieces(text, BYTES, 200))) == -(-len(text) // 182)
