"""Stop strings are found across pieces and never let out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpt2.inference.stop import StopStrings

SHORT = st.text("ab\n", max_size=4)


def read(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    found = StopStrings(stops)
    shown = [found.push(piece) for piece in pieces]
    return [*shown, found.finish()], found.found


def test_a_stop_string_over_three_pieces_ends_the_text_before_it() -> None:
    shown, found = read(["\n\nQ:"], ["one\n", "\n", "Q: two", " three"])
    assert "".join(shown) == "one"
    assert found


def test_what_cannot_become_a_stop_string_is_let_out_at_once() -> None:
    assert read(["END"], ["abc", "E", "x", "EN"])[0] == ["abc", "", "Ex", "", "EN"]


def test_the_one_complete_first_wins() -> None:
    assert "".join(read(["abcd", "bc"], ["abcd"])[0]) == "a"
    assert "".join(read(["abc", "bc"], ["xabc"])[0]) == "x"


@given(st.lists(SHORT, max_size=12), st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=3))
def test_the_result_does_not_depend_on_the_pieces(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    shown, found = read(stops, pieces)
    by_character, found_by_character = read(stops, list(whole))
    assert "".join(shown) == "".join(by_character)
    assert found == found_by_character == any(stop in whole for stop in stops)
    assert not any(stop in "".join(shown) for stop in stops)
    assert whole.startswith("".join(shown))
