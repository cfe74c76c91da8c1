"""Rows of whole examples: nothing lost, nothing over the room, targets only where something is learned."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.data.encoded import Encoded, Encodings
from gpt2.data.packing import fill_row, pack
from gpt2.model.config import IGNORE_INDEX

LENGTHS = st.integers(1, 40).flatmap(
    lambda room: st.tuples(st.just(room), st.lists(st.integers(1, room), max_size=60), st.integers(0, 5))
)


@st.composite
def encoded(draw: st.DrawFn) -> Encoded:
    ids = draw(st.lists(st.integers(0, 500), min_size=2, max_size=12))
    wanted = [False, *draw(st.lists(st.booleans(), min_size=len(ids) - 1, max_size=len(ids) - 1))]
    return Encoded(np.array(ids, np.int32), np.array(wanted))


@given(LENGTHS)
def test_every_example_is_in_one_row_and_no_row_is_over_the_room(case: tuple[int, list[int], int]) -> None:
    room, lengths, seed = case
    rows = pack(lengths, room, seed)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[number] for number in row) <= room for row in rows)
    assert rows == pack(lengths, room, seed)


@given(LENGTHS)
def test_no_example_would_have_fitted_into_an_earlier_row(case: tuple[int, list[int], int]) -> None:
    room, lengths, seed = case
    filled = sorted(sum(lengths[number] for number in row) for row in pack(lengths, room, seed))
    assert sum(2 * size <= room for size in filled) <= 1


def test_rows_of_short_examples_are_nearly_full_and_differ_with_the_seed() -> None:
    lengths = np.random.default_rng(0).integers(20, 90, 5000)
    rows = pack(lengths, 512, seed=1)
    assert lengths.sum() / (512 * len(rows)) > 0.97
    assert rows != pack(lengths, 512, seed=2)
    means = [lengths[row].mean() for row in rows]
    assert np.std(means) < 15, "rows are of all kinds of examples, not sorted by length"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not go into rows of 8"):
        pack([3, 9], 8, 0)
    example = Encoded(np.arange(6, dtype=np.int32), np.ones(6, bool))
    with pytest.raises(ValueError, match="2 examples do not fit a row of 9"):
        fill_row([example, example], 9)


@given(st.lists(encoded(), max_size=5), st.integers(0, 9))
def test_a_row_is_its_examples_and_padding(examples: list[Encoded], padding: int) -> None:
    room = sum(example.positions for example in examples) + padding
    inputs, targets, segments = fill_row(examples, room)
    assert inputs.shape == targets.shape == segments.shape == (room,)
    start = 0
    for number, example in enumerate(examples):
        here = slice(start, start + example.positions)
        assert (segments[here] == number).all()
        assert inputs[here].tolist() == example.ids.tolist()[:-1]
        pairs = zip(example.ids[1:].tolist(), example.wanted[1:].tolist(), strict=True)
        assert targets[here].tolist() == [id if wanted else IGNORE_INDEX for id, wanted in pairs]
        start = here.stop
    assert (segments[start:] >= len(examples)).all()
    assert (np.diff(segments[start:]) != 0).all(), "each token of padding is alone, so that none is far from its start"
    assert (targets[start:] == IGNORE_INDEX).all()


def test_flat_arrays_give_what_was_put_in_and_parts_share_them() -> None:
    ids, wanted = np.arange(10, dtype=np.uint16), np.ones(10, bool)
    starts, ends = np.array([0, 3, 5]), np.array([4, 6, 10])
    many = Encodings(ids, wanted, starts, ends, np.array([7, 8, 9], np.int32))
    assert many.positions.tolist() == [3, 2, 4] == [example.positions for example in many]
    assert many[1].ids.tolist() == [3, 4, 5] and many[1].label == 8
    assert many[1].wanted.tolist() == [False, True, True], "the first is never learned"
    part = many.take(np.array([2, 0]))
    assert [example.label for example in part] == [9, 7] and part.ids is ids
    assert [example.label for example in many[1:]] == [8, 9]
