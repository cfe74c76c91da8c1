"""Which document is held out depends on what it says; near-identical ones go together."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.data import splitting
from gpt2.data.readers import Piece
from gpt2.data.splitting import Grouper, by_document, by_position, sketch, threshold
from gpt2.errors import UserError

WORDS = [f"{a}{b}{c}" for a in ("str", "mon", "kel", "vis") for b in "aeiou" for c in ("n", "cks", "lter", "sic", "")]


def essay(seed: int, words: int = 400) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def edited(text: str, seed: int, changes: int) -> str:
    words, draw = text.split(" "), random.Random(seed)
    for place in draw.sample(range(len(words)), changes):
        words[place] = "edit"
    return " ".join(words)


def draws(*batches: list[str], seed: int = 0) -> list[int]:
    grouper = Grouper()
    return [draw for batch in batches for draw in grouper.draws(sketch(batch, seed)).tolist()]


def test_a_draw_depends_on_seed_and_content_not_on_order_or_batch():
    texts = [essay(n) for n in range(20)] + ["short", "shorter"]
    together = draws(texts)
    assert len(set(together)) == 22
    assert draws(texts[::-1]) == together[::-1]
    assert draws(*[[text] for text in texts]) == together
    assert not set(draws(texts, seed=1)) & set(together)


@pytest.mark.parametrize("batches", ["one", "two"])
def test_near_identical_documents_share_a_draw_in_one_batch_and_across(batches: str):
    for n in range(50):
        text = essay(n)
        twin = edited(text, n, 4)
        pair = draws([text, twin]) if batches == "one" else draws([text], [essay(1000 + n)], [twin])[::2]
        assert pair[0] == pair[1]


def test_other_documents_do_not_even_with_a_half_in_common():
    texts = [essay(n, 200) + " " + essay(10**6, 200) for n in range(100)]
    assert len(set(draws(texts[:50], texts[50:]))) >= 97


def test_case_and_kind_of_white_space_make_no_difference():
    text = essay(1)
    assert len(set(draws([text, text.upper(), text.replace(" ", "\n")]))) == 1
    assert len(set(draws(["Hi there", "hi\tTHERE", "hi there!"]))) == 2  # too short for shingles: compared whole


def test_templates_with_other_numbers_stay_apart():
    assert len(set(draws([f"What is {n} + {n * 7}? Answer: {n * 8}." for n in range(500)]))) == 500


def test_what_was_seen_too_long_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(splitting, "REMEMBERED", 8)
    text, twin = essay(1), edited(essay(1), 1, 3)
    others = [essay(n) for n in range(100, 120)]
    assert len(set(draws([text], [twin]))) == 1
    assert draws([text], others[:4], [twin])[-1] == draws([text])[0]
    assert draws([text], others, [twin])[-1] != draws([text])[0]


def test_sketches_of_empty_and_odd_documents():
    found = sketch(["", "\ud800", "c", "ca" * 40, "1" * 100], 0)
    assert len(set(found.digests)) == 5 and found.smallest.shape == (5, splitting.SKETCH)
    assert len(Grouper().draws(sketch([], 0))) == 0


@given(st.floats(0.001, 0.999), st.lists(st.integers(0, 2**64 - 1), min_size=2, unique=True))
def test_the_threshold_leaves_documents_on_both_sides(fraction: float, values: list[int]):
    below = threshold(fraction, min(values), max(values))
    assert 0 < sum(value < below for value in values) < len(values)
    if min(values) < int(fraction * 2.0**64) < max(values):
        assert below == int(fraction * 2.0**64)


def test_documents_of_one_draw_cannot_be_split():
    with pytest.raises(UserError, match="--split position"):
        threshold(0.1, 5, 5)


def test_about_the_fraction_asked_for_is_held_out():
    found = np.array(draws([f"document number {n}" for n in range(4000)]), np.uint64)
    below = threshold(0.05, int(found.min()), int(found.max()))
    assert 160 <= (found < below).sum() <= 240


def test_all_pieces_of_a_document_go_to_its_side():
    pieces = [Piece("a", True, False), Piece("b", False, True), Piece("c", True, True)]
    parts = list(by_document(pieces, [9, 3], 5))
    assert [(part.text, part.split, part.ends) for part in parts] == [
        ("a", "train", False),
        ("b", "train", True),
        ("c", "val", True),
    ]


def test_more_documents_than_were_scanned_means_that_the_sources_changed():
    with pytest.raises(UserError, match="changed"):
        list(by_document([Piece("a", True, True)] * 2, [1], 5))


@given(st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=8), st.integers(0, 30))
def test_by_position_cuts_at_the_character(texts: list[str], boundary: int):
    parts = list(by_position([Piece(text, True, True) for text in texts], boundary))
    sides = {side: "".join(part.text for part in parts if part.split == side) for side in ("train", "val")}
    whole = "".join(texts)
    assert (sides["train"], sides["val"]) == (whole[:boundary], whole[boundary:])
    assert sum(part.ends for part in parts) == len(texts)
