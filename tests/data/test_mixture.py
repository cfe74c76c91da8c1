"""Mixtures: exact shares, every part in its own order, the same rows whatever the division, exact cursors."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.data.loader import Loader
from gpt2.data.mixture import Mixture, Part, expected_passes, parse_part
from gpt2.data.shards import Meta, ShardWriter, Split, SplitMeta, open_split
from gpt2.errors import UserError

LENGTHS = (150, 90, 300)
CONTEXT = 8


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> list[Split]:
    """Three texts whose tokens tell where they are: part * 1000 + place."""
    found = []
    for number, length in enumerate(LENGTHS):
        folder: Path = tmp_path_factory.mktemp("part")
        writer = ShardWriter(folder, "train", "uint16")
        writer.write(1000 * number + np.arange(length))
        writer.close()
        Meta(train=SplitMeta(tuple(writer.files), length, None, None, None)).save(folder)
        found.append(open_split(folder, "train"))
    return found


def mixture(splits: list[Split], weights: tuple[str, ...] = ("0.6", "0.3", "0.1"), **ranks: int) -> Mixture:
    parts = [Part(f"p{n}", split, Fraction(weight)) for n, (split, weight) in enumerate(zip(splits, weights))]  # noqa: B905
    return Mixture(parts, CONTEXT, 5, **ranks)


def starts(rows: Mixture, count: int, batches: int = 1) -> list[int]:
    found: list[int] = []
    for _ in range(batches):
        inputs, targets = rows.next_batch(count)
        assert inputs.shape == (count, CONTEXT) and (targets == inputs + 1).all()
        found += inputs[:, 0].tolist()
    return found


@given(st.lists(st.integers(1, 50), min_size=3, max_size=3), st.integers(1, 300))
def test_the_shares_are_the_weights_over_any_stretch(splits: list[Split], weights: list[int], rows: int) -> None:
    drawn = Counter(start // 1000 for start in starts(mixture(splits, tuple(map(str, weights))), rows))
    for part, weight in enumerate(weights):
        assert abs(drawn[part] - rows * weight / sum(weights)) < 2


def test_each_part_is_read_in_its_own_order_and_counted(splits: list[Split]) -> None:
    mixed = mixture(splits)
    drawn = starts(mixed, 10, 30)
    for number, split in enumerate(splits):
        alone = Loader(split, CONTEXT, 5 + number)
        mine = [start for start in drawn if start // 1000 == number]
        assert mine == [1000 * number + start for start in alone.draw(len(mine))]
        assert mixed.passes()[f"p{number}"] == pytest.approx(alone.passes)
    assert mixed.passes()["p0"] > 9


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_the_same_global_rows_whatever_the_division(splits: list[Split], world_size: int) -> None:
    expected = starts(mixture(splits), 12, 5)
    ranks = [mixture(splits, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [start for _ in range(5) for rank in ranks for start in starts(rank, 12 // world_size)] == expected


@given(st.integers(0, 30), st.integers(1, 7), st.integers(1, 3))
def test_a_cursor_resumes_exactly_with_another_division(
    splits: list[Split], done: int, rows: int, world_size: int
) -> None:
    whole = mixture(splits)
    starts(whole, rows, done)
    state = json.loads(json.dumps(whole.state()))
    rest = starts(whole, rows * world_size, 6)
    resumed = [mixture(splits, rank=rank, world_size=world_size) for rank in range(world_size)]
    for rank in resumed:
        rank.load(state)
    assert [start for _ in range(6) for rank in resumed for start in starts(rank, rows)] == rest


def test_a_cursor_of_other_weights_is_refused(splits: list[Split]) -> None:
    with pytest.raises(UserError, match="resume with the same mixture"):
        mixture(splits, ("0.5", "0.4", "0.1")).load(mixture(splits).state())


@given(st.floats(1e-5, 1e5), st.text(min_size=1).filter(lambda text: "\0" not in text))
def test_a_part_is_a_folder_and_a_weight(weight: float, folder: str) -> None:
    name, found = parse_part(f"{folder}={weight}")
    assert name == folder and float(found) == pytest.approx(weight, rel=0.06, abs=1e-6)


@pytest.mark.parametrize(
    "text", ["data", "data=", "=1", "data=0", "data=-1", "data=nan", "data=inf", "data=1e999", "a=x"]
)
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="write FOLDER=WEIGHT"):
        parse_part(text)


def test_gpt3s_epochs_follow_from_its_weights(splits: list[Split]) -> None:
    class Long:
        def __init__(self, tokens: float) -> None:
            self.tokens = int(tokens)

        def __len__(self) -> int:
            return self.tokens

    table = {"cc": (410e9, "0.60"), "webtext2": (19e9, "0.22"), "books1": (12e9, "0.08"), "books2": (55e9, "0.08")}
    table["wikipedia"] = (3e9, "0.03")
    parts = [Part(name, Long(tokens), Fraction(weight)) for name, (tokens, weight) in table.items()]  # type: ignore[arg-type]
    found = expected_passes(parts, 300 * 10**9)
    printed = {"cc": 0.44, "webtext2": 2.9, "books1": 1.9, "books2": 0.43, "wikipedia": 3.4}  # Table 2.2
    assert all(found[name] == pytest.approx(epochs, rel=0.2) for name, epochs in printed.items())
