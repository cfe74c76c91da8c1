"""Batches drawn ahead: the same rows in the same order, and the cursor of the batch that was taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_tokens import VOCABULARY, write_tokens

from gpt2.data.loader import Loader
from gpt2.distributed.ranks import Ranks
from gpt2.errors import UserError
from gpt2.train.batches import documents, open_batches
from gpt2.train.config import TrainConfig
from gpt2.train.corpus import absolute, open_corpus

Tiny = Callable[..., TrainConfig]


@pytest.fixture
def tiny(tiny: Tiny) -> Tiny:
    """Configs as they are once the data's vocabulary is known."""
    return lambda **changes: tiny(model={"vocab_size": VOCABULARY}, **changes)


GROWING: dict[str, Any] = {"batch_ramp_tokens": 640, "batch_ramp_from": 32}


def test_the_rows_and_cursors_are_the_loaders(tiny: Tiny) -> None:
    config = tiny(**GROWING)
    corpus = open_corpus(config)
    batches, loader = open_batches(corpus, config), Loader(corpus.train, 16, config.seed)
    for step in range(12):
        batch = batches.next(step)
        inputs, targets = loader.next_batch(config.ramp.rows_at(step))
        assert torch.equal(batch.inputs, torch.from_numpy(inputs))
        assert torch.equal(batch.targets, torch.from_numpy(targets))
        assert batches.state() == loader.state()


def test_a_step_asked_for_again_or_out_of_turn_gets_the_next_rows_in_its_own_shape(tiny: Tiny) -> None:
    config = tiny(max_steps=None, **GROWING)
    corpus = open_corpus(config)
    batches, loader = open_batches(corpus, config), Loader(corpus.train, 16, config.seed)
    for step in (0, 0, 9, 3, 4, 4, 20):
        inputs, _ = loader.next_batch(config.ramp.rows_at(step))
        assert torch.equal(batches.next(step).inputs, torch.from_numpy(inputs))


@pytest.mark.parametrize("data_size", [1, 2])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_growing_batch_resumes_exactly_on_any_number_of_ranks(
    tiny: Tiny, tokens: Path, tmp_path: Path, mixed: bool, data_size: int
) -> None:
    other = write_tokens(tmp_path / "other", 700)
    mixture = (f"{tokens}=2", f"{other}=1") if mixed else ()
    config = tiny(mixture=mixture, **GROWING)
    corpus = open_corpus(config)
    whole = open_batches(corpus, config)
    for step in range(7):
        whole.next(step)
    cursor = whole.state()
    ranks = [Ranks(data_rank=rank, data_size=data_size) for rank in range(data_size)]
    resumed = [open_batches(corpus, config, rank, cursor) for rank in ranks]
    for step in range(7, 12):
        rows = torch.cat([each.next(step).inputs for each in resumed])
        assert torch.equal(rows, whole.next(step).inputs)
        assert len(rows) == config.ramp.rows_at(step)
        assert resumed[0].epochs() == whole.epochs() and set(whole.epochs()) == (
            {tokens.name, "other"} if mixed else set()
        )


def test_an_error_in_the_thread_comes_up_in_the_step_that_needs_the_rows(tiny: Tiny) -> None:
    config = tiny(max_steps=None)
    corpus = open_corpus(config)
    batches = open_batches(corpus, replace(config, model=replace(config.model, vocab_size=61)))
    batches.next(0)
    batches.next(1)
    cursor = batches.state()
    small = open_batches(corpus, replace(config, model=replace(config.model, vocab_size=60)), cursor=cursor)
    with pytest.raises(UserError, match=r"holds token 60, but the vocabulary ends at 59"):
        for step in range(100):
            small.next(step)


def test_rows_that_cannot_be_dealt_out_are_refused(tiny: Tiny) -> None:
    config = tiny(**GROWING)
    corpus = open_corpus(config)
    with pytest.raises(
        UserError, match="2 rows cannot be dealt out evenly to 4 groups of processes; change batch_ramp_from"
    ):
        open_batches(corpus, config, Ranks(data_size=4))
    with pytest.raises(
        UserError, match="8 rows cannot be dealt out evenly to 3 groups of processes; change batch_tokens"
    ):
        open_batches(corpus, tiny(), Ranks(data_size=3))


@given(st.lists(st.integers(0, 4), min_size=8, max_size=8))
def test_a_document_begins_with_the_end_of_text_before_it(row: list[int]) -> None:
    (segments,) = documents(torch.tensor([row]), eot_id=0).tolist()
    for place in range(1, 8):
        assert segments[place] - segments[place - 1] == (row[place] == 0)


def test_masked_documents_are_told_apart_and_need_an_end(tiny: Tiny, tokens: Path, tmp_path: Path) -> None:
    config = tiny(pack="masked")
    with pytest.raises(UserError, match=r"pack = masked: .* does not say which token ends a document"):
        open_batches(open_corpus(config), config)
    folder = write_tokens(tmp_path / "ended")
    text = (folder / "meta.json").read_text().replace('"eot_id": null', '"eot_id": 7')
    (folder / "meta.json").write_text(text)
    config = tiny(pack="masked", data=str(folder))
    batch = open_batches(open_corpus(config), config).next(0)
    assert batch.segment_ids is not None and torch.equal(batch.segment_ids, (batch.inputs == 7).cumsum(1))
    assert open_batches(open_corpus(config), replace(config, pack="stream")).next(0).segment_ids is None


def test_parts_of_other_vocabularies_and_twice_the_same_are_refused(tiny: Tiny, tokens: Path, tmp_path: Path) -> None:
    other = write_tokens(tmp_path / "other")
    text = (other / "meta.json").read_text().replace('"vocab_size": 61', '"vocab_size": 62')
    (other / "meta.json").write_text(text)
    with pytest.raises(UserError, match=r"was made with vocab_size 62, .* with 61; prepare all of them"):
        open_corpus(tiny(mixture=(f"{tokens}=1", f"{other}=1")))
    with pytest.raises(UserError, match="stands in it twice"):
        open_corpus(tiny(mixture=(f"{tokens}=1", f"{tokens}=2")))


def test_folders_become_absolute_and_their_epochs_are_told(
    tiny: Tiny, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tokens(tmp_path / "other", 3000)
    monkeypatch.chdir(tmp_path)
    config = absolute(tiny(mixture=(f"{tokens}=3", "other=1")))
    assert config.mixture == (f"{tokens}=3", f"{tmp_path / 'other'}=1")
    assert open_corpus(config).describe_epochs(24_000) == f"3.00 epochs of {tokens.name}, 2.00 of other"
    assert open_corpus(tiny()).describe_epochs(9000) == "1.50 epochs"
