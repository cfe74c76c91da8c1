"""Batches: every window once an epoch, the same rows in any division, a cursor that resumes exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.data.loader import IGNORE_INDEX, Loader, eval_windows
from gpt2.data.permutation import Permutation
from gpt2.data.shards import Meta, ShardWriter, Split, SplitMeta, open_split
from gpt2.errors import UserError


@pytest.fixture(scope="module")
def make_split(tmp_path_factory: pytest.TempPathFactory):
    """Splits whose token at place n is n, so that a window tells where it was."""
    known: dict[tuple[int, int | None], Split] = {}

    def make(length: int, preceding: int | None = None) -> Split:
        if (length, preceding) not in known:
            folder: Path = tmp_path_factory.mktemp("data")
            writer = ShardWriter(folder, "train", "uint16", shard_tokens=37)
            writer.write(np.arange(length))
            writer.close()
            meta = Meta(train=SplitMeta(tuple(writer.files), length, None, None, preceding))
            meta.save(folder)
            known[length, preceding] = open_split(folder, "train")
        return known[length, preceding]

    return make


@given(st.integers(1, 2000), st.integers(0, 2**70), st.integers(0, 50))
def test_a_permutation_is_one(size: int, seed: int, epoch: int):
    assert sorted(Permutation(size, seed, epoch)(np.arange(size)).tolist()) == list(range(size))


def test_a_permutation_looks_random_and_differs_by_key():
    orders = np.stack([Permutation(1000, 7, epoch)(np.arange(1000)) for epoch in range(200)])
    assert len({tuple(order) for order in orders.tolist()}) == 200
    assert abs(orders.mean(axis=0) - 499.5).max() < 110  # 5 standard errors of a uniform mean of 200
    steps = np.diff(orders, axis=1)
    assert np.abs(steps).mean() == pytest.approx(1000 / 3, rel=0.02)
    assert (steps == 1).mean() < 0.003


def test_a_permutation_of_very_many_takes_no_memory():
    values = Permutation(10**12, 3)(np.arange(1000))
    assert len(set(values.tolist())) == 1000 and values.min() >= 0 and values.max() < 10**12
    with pytest.raises(ValueError):
        Permutation(0)


def starts(loader: Loader, rows: int, batches: int) -> list[int]:
    found: list[int] = []
    for _ in range(batches):
        inputs, targets = loader.next_batch(rows)
        assert inputs.dtype == targets.dtype == np.int64 and inputs.shape == (rows, loader.context_length)
        assert (np.diff(inputs) == 1).all() and (targets == inputs + 1).all()
        found += inputs[:, 0].tolist()
    return found


@given(st.integers(2, 300), st.integers(1, 40), st.integers(0, 5))
def test_an_epoch_has_every_window_once_and_the_next_another_order(make_split, length: int, context: int, seed: int):
    if length <= context:
        return
    loader = Loader(make_split(length), context, seed)
    offsets = []
    for epoch in range(3):
        windows = loader.tokens_per_epoch // context
        found = sorted(starts(loader, 1, windows))
        assert loader.epoch == epoch
        assert found == list(range(found[0], found[0] + windows * context, context))
        assert found[0] < context and length - 1 - context < found[-1] + context  # nothing left out but the edges
        offsets.append(found[0])
        before = loader.state()
        loader.next_batch(1)
        loader = Loader(make_split(length), context, seed, state=before | {"epoch": epoch + 1, "position": 0})
    assert all(0 <= offset < context for offset in offsets)


def test_the_offset_changes_from_epoch_to_epoch(make_split):
    loader = Loader(make_split(300), 16, seed=1)
    assert len({min(starts(loader, 1, loader.tokens_per_epoch // 16)) for _ in range(10)}) > 3


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_same_global_rows_whatever_the_division(make_split, world_size: int, micro_batches: int):
    split, batch = make_split(200), 12
    expected = starts(Loader(split, 8, 3), batch, 5)  # crosses the end of an epoch of about 24 windows
    rows = batch // world_size // micro_batches
    loaders = [Loader(split, 8, 3, rank, world_size) for rank in range(world_size)]
    found = [start for _ in range(5 * micro_batches) for loader in loaders for start in starts(loader, rows, 1)]
    assert found == expected
    assert {tuple(loader.state().items()) for loader in loaders} == {tuple(loaders[0].state().items())}


@given(st.integers(0, 30), st.integers(1, 7), st.integers(1, 3))
def test_a_state_resumes_exactly_with_another_division(make_split, done: int, rows: int, world_size: int):
    split = make_split(120)
    loader = Loader(split, 8, 5)
    starts(loader, rows, done)
    state = loader.state()
    assert all(isinstance(value, int) for value in state.values())
    rest = starts(loader, rows * world_size, 6)
    resumed = [Loader(split, 8, 5, rank, world_size, state) for rank in range(world_size)]
    assert [start for _ in range(6) for each in resumed for start in starts(each, rows, 1)] == rest


def test_a_batch_larger_than_the_split_takes_several_epochs(make_split):
    loader = Loader(make_split(20), 8, 0)
    assert len(starts(loader, 50, 1)) == 50
    assert loader.epoch > 10


def test_a_state_of_other_data_is_refused(make_split):
    state = Loader(make_split(120), 8, 5).state()
    for split, context, seed, named in (
        (make_split(121), 8, 5, "tokens 120"),
        (make_split(120), 9, 5, "context_length 8"),
        (make_split(120), 8, 6, "seed 5"),
    ):
        with pytest.raises(UserError, match=named):
            Loader(split, context, seed, state=state)


def test_a_corpus_shorter_than_the_context_names_both_and_the_way_out(make_split):
    with pytest.raises(UserError, match=r"train has 20 tokens, fewer than the 21 .*context_length 20.*smaller context"):
        Loader(make_split(20), 20, 0)
    assert starts(Loader(make_split(21), 20, 0), 1, 3) == [0, 0, 0]


@given(st.integers(1, 150), st.integers(1, 20), st.integers(1, 5), st.sampled_from([None, 60000]))
def test_every_token_is_a_target_exactly_once(make_split, length: int, context: int, rows: int, preceding: int | None):
    split = make_split(length, preceding)
    seen: list[int] = []
    batches = list(eval_windows(split, context, rows))
    for number, (inputs, targets) in enumerate(batches):
        assert inputs.shape == targets.shape and inputs.shape[1] == context
        assert inputs.shape[0] == rows or (number == len(batches) - 1 and 0 < inputs.shape[0] < rows)
        counted = targets != IGNORE_INDEX
        before = np.where(targets == 0, -1 if preceding is None else preceding, targets - 1)
        assert (inputs[counted] == before[counted]).all() and (inputs[~counted] == 0).all()
        seen += targets[counted].tolist()
    assert seen == list(range(0 if preceding is not None else 1, length))
