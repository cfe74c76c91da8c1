"""Nothing is lost: a run that is killed and resumed leaves the trace of one that was not."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forked_commands import Commands
from killed_runs import failing_at, kill_once_on_its_way, trace

from gpt2.checkpoint.train_state import newest_good_step, steps
from gpt2.errors import UserError
from gpt2.train.config import TrainConfig
from gpt2.train.pretrain import pretrain, resume

STEPS = 60


def command(tokens: Path, out: Path) -> list[str]:
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 64, "context_length": 32, "dropout": 0.1, "dtype": "auto"}
    rhythm = {"max_steps": STEPS, "batch_tokens": 512, "micro_batch_size": 7, "save_every": 3, "eval_every": 9}
    settings = {"data": tokens, "out": out, **shape, **rhythm}
    return ["train", *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the runs are forked")
def test_ten_kills_leave_the_trace_of_an_uninterrupted_run(tokens: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    dice, kills, words = random.Random(11), 0, command(tokens, broken)
    with Commands() as gpt2:
        gpt2.run(*command(tokens, whole))
        for attempt in range(10):
            kills += kill_once_on_its_way(gpt2.start(*words), broken, dice, while_saving=attempt % 2 == 1)
            words = ["train", "--resume", str(broken)]
        gpt2.run(*words)
    assert kills >= 8, "the run was too short to be killed ten times"
    assert len(trace(whole)) == STEPS
    assert trace(broken) == trace(whole)
    assert not list(broken.glob(".step_*")), "leftovers of an interrupted save"


def test_resuming_continues_optimizer_dropout_and_data_to_the_bit(
    tiny: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for optimizer in ("muon", "adamw"):
        settings = {"model": {"dropout": 0.2}, "optim": {"optimizer": optimizer}, "save_every": 5}
        whole = pretrain(tiny(out=str(tmp_path / f"{optimizer}-whole"), **settings), quiet=True)
        broken = tmp_path / f"{optimizer}-broken"
        with monkeypatch.context() as patch:
            patch.setattr("gpt2.train.hooks.Log.__call__", failing_at(8))
            with pytest.raises(ZeroDivisionError):
                pretrain(tiny(out=str(broken), **settings), quiet=True)
        resume(broken, quiet=True)
        assert trace(broken) == trace(whole.folder)


def test_a_damaged_checkpoint_is_passed_over(
    tiny: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    run = pretrain(tiny(save_every=4, keep_last=3), quiet=True).folder
    before = trace(run)
    *_, second, newest = steps(run)
    weights = newest / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    weights.write_bytes(damaged)
    assert newest_good_step(run) == second
    assert "model.safetensors is damaged" in capsys.readouterr().err
    resume(run, quiet=True)
    assert trace(run) == before
    assert newest_good_step(run) == newest


def test_a_run_is_not_overwritten_nor_resumed_with_other_settings(tiny: Callable[..., TrainConfig]) -> None:
    run = pretrain(tiny(max_steps=2), quiet=True).folder
    with pytest.raises(UserError, match="holds a run already"):
        pretrain(tiny(max_steps=3), quiet=True)
    with pytest.raises(UserError, match="no run to resume"):
        resume(run / "nothing", quiet=True)


def test_resuming_a_finished_run_changes_nothing(tiny: Callable[..., TrainConfig]) -> None:
    run = pretrain(tiny(max_steps=3), quiet=True).folder
    before = trace(run)
    assert resume(run, quiet=True).state.step == 3
    assert trace(run) == before
