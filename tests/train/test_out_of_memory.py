"""Memory that runs out in the middle of a step: the step is redone with half of the rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixed_runs import make_run
from torch import Tensor

from gpt2.distributed.ranks import Ranks
from gpt2.errors import UserError
from gpt2.train.config import TrainConfig
from gpt2.train.drive import explaining
from gpt2.train.hooks import Log
from gpt2.train.loop import Run, StepResult, TrainState, take_step
from gpt2.train.metrics import read_metrics
from gpt2.train.pretrain import pretrain, resume
from gpt2.train.shortage import NOTE, fit_noted, layout_of, note_rows, noted
from gpt2.train.weights import Weights

Tiny = Callable[..., TrainConfig]
KEYS = ("step", "tokens", "train/loss", "grad_norm", "learning_rate")


def trace(run: Path) -> list[tuple[Any, ...]]:
    return [tuple(line[key] for key in KEYS) for line in read_metrics(run) if "train/loss" in line]


def run_out_of_memory(monkeypatch: pytest.MonkeyPatch, calls: set[int]) -> None:
    """Let these backward passes, counted from 1 over the whole run, fail as a full GPU does."""
    original, count = Weights.backward, 0

    def backward(self: Weights, loss: Tensor, *arguments: Any, **more: Any) -> None:
        nonlocal count
        count += 1
        if count in calls:
            raise torch.OutOfMemoryError("CUDA out of memory (as if)")
        original(self, loss, *arguments, **more)

    monkeypatch.setattr(Weights, "backward", backward)


SECOND_PASS_OF_STEP_7 = {2 * 6 + 2}  # two micro-batches of 4 rows make a step of 8


def test_the_trace_is_that_of_a_run_with_the_smaller_micro_batch(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = pretrain(tiny(micro_batch_size=2, out=str(tmp_path / "small")), quiet=True)
    run_out_of_memory(monkeypatch, SECOND_PASS_OF_STEP_7)
    halved = pretrain(tiny(micro_batch_size=4, out=str(tmp_path / "halved")), quiet=True)
    assert halved.state.halvings == 1
    assert len(trace(halved.folder)) == 12
    for found, expected in zip(trace(halved.folder), trace(small.folder), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


def test_the_redone_step_draws_the_same_random_numbers(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"micro_batch_size": 4, "model": {"dropout": 0.2}}
    original = Log.__call__

    def halve_after_6(self: Log, run: Run, result: StepResult) -> None:
        original(self, run, result)
        run.state.halvings = int(run.state.step >= 6)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "__call__", halve_after_6)
        expected = trace(pretrain(tiny(out=str(tmp_path / "planned"), **settings), quiet=True).folder)
    run_out_of_memory(monkeypatch, SECOND_PASS_OF_STEP_7)
    assert trace(pretrain(tiny(out=str(tmp_path / "halved"), **settings), quiet=True).folder) == expected


def test_rows_and_device_are_chosen_anew_where_that_is_asked_for(tiny: Tiny) -> None:
    path = Path(pretrain(tiny(max_steps=2, micro_batch_size=1, dtype="float32"), quiet=True).folder)
    finished = resume(path, quiet=True, changes={"micro_batch_size": None, "device": "auto"})
    assert finished.state.step == 2


def test_a_resumed_run_keeps_the_smaller_micro_batch(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"micro_batch_size": 4, "save_every": 8, "max_steps": 10}
    run_out_of_memory(monkeypatch, SECOND_PASS_OF_STEP_7)
    whole = pretrain(tiny(out=str(tmp_path / "whole"), **settings), quiet=True)

    def fail(self: Log, run: Run, result: StepResult) -> None:
        if run.state.step == 9:
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        run_out_of_memory(patch, SECOND_PASS_OF_STEP_7)
        patch.setattr("gpt2.train.hooks.Evaluate.__call__", fail)
        with pytest.raises(ZeroDivisionError):
            pretrain(tiny(out=str(tmp_path / "broken"), **settings), quiet=True)
    resumed = resume(tmp_path / "broken", quiet=True)
    assert resumed.state.halvings == 1
    assert trace(resumed.folder) == trace(whole.folder)


def test_one_of_several_processes_notes_what_was_too_much(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    run, config = make_run(4, ranks=Ranks(rank=1, world_size=2)), tiny()
    run_out_of_memory(monkeypatch, {1})
    message = "process 1: out of memory with 4 rows at a time; choose a smaller --micro_batch_size, or have it halved"
    with pytest.raises(UserError, match=message), explaining(run, config):
        take_step(run)
    assert noted(Path(config.out) / NOTE, layout_of(run, config)) == 4


def test_what_was_too_much_is_no_more_than_there_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A micro-batch that is larger than the batch is no number of rows that were tried."""
    run = make_run(64)
    run_out_of_memory(monkeypatch, {1})
    rows = len(run.batches.next(0).inputs)
    assert f"out of memory with {rows} rows at a time; going on with 8" in take_step(run).note
    several = make_run(64, ranks=Ranks(rank=1, world_size=2))
    run_out_of_memory(monkeypatch, {1})
    with pytest.raises(UserError, match=f"process 1: out of memory with {rows} rows at a time"):
        take_step(several)


def test_a_noted_shortage_halves_the_rows_until_they_are_fewer_or_chosen_anew(tiny: Tiny) -> None:
    run, config = make_run(8), tiny()
    note_rows(run, config, 3)
    fit_noted(run, config, chosen=False)
    assert run.micro_batch_size >> run.state.halvings == 2
    fit_noted(run, config, chosen=False)
    assert run.state.halvings == 2
    fit_noted(run, config, chosen=True)
    assert run.state.halvings == 0
    fit_noted(run, config, chosen=False)
    assert run.state.halvings == 0  # the note is gone


def test_a_note_is_of_one_layout(tiny: Tiny) -> None:
    run, config = make_run(8), tiny()
    note_rows(run, replace(config, recompute="full"), 3)
    fit_noted(run, config, chosen=False)
    assert run.state.halvings == 0
    note_rows(run, config, 1)  # no fewer than one
    fit_noted(run, config, chosen=False)
    assert run.micro_batch_size >> run.state.halvings == 1


@pytest.mark.parametrize("text", ["", "[]", '{"rows": 3}', '{"rows": null, "layout": ""}', '{"layout": ""}'])
def test_a_note_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / NOTE).write_text(text)
    assert noted(tmp_path / NOTE, "") is None


@pytest.mark.parametrize("restarts", ["0", "1"])
def test_rows_that_were_chosen_for_a_first_start_are_not_for_those_that_torchrun_makes(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, restarts: str
) -> None:
    """It repeats the command line, with the number that was too much."""
    config = tiny(micro_batch_size=4, max_steps=2)
    pretrain(config, quiet=True)
    note_rows(make_run(4), config, 4)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
    resumed = resume(config.out, quiet=True, changes={"micro_batch_size": 4})
    assert resumed.state.halvings == int(restarts)


def test_five_rows_become_two_and_then_one_and_then_an_error(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[TrainState] = []
    monkeypatch.setattr(Log, "__call__", lambda self, run, result: states.append(run.state))
    run_out_of_memory(monkeypatch, set(range(1, 3)) | {100})
    with pytest.raises(UserError, match="out of memory on cpu with one row at a time; use a shorter context_length"):
        pretrain(tiny(micro_batch_size=5, max_steps=20), quiet=True)
    assert states[-1].halvings == 2
