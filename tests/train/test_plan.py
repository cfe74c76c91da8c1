"""Decided before step 1: rows at a time by the memory that is free."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpt2.distributed.launch import Place
from gpt2.distributed.mesh import MeshSizes
from gpt2.model.memory import Pass, training_bytes
from gpt2.model.presets import PRESETS
from gpt2.train import plan
from gpt2.train.build import fit_rows
from gpt2.train.config import TrainConfig, compose


def config(micro_batch_size: int | None = None) -> TrainConfig:
    return compose(
        preset="gpt2-124m", vocab_size=50257, batch_tokens=64 * 1024, micro_batch_size=micro_batch_size, device="cpu",
        dtype="bfloat16",
    )  # fmt: skip


def test_what_is_given_is_taken_but_never_more_than_a_processs_rows() -> None:
    assert plan.decide_micro_batch(config(3), 0) == 3
    assert plan.decide_micro_batch(config(100), 0) == 64
    assert plan.decide_micro_batch(config(100), 0, rows=16) == 16


def test_more_memory_is_more_rows_in_even_micro_steps_that_fit_the_model_of_memory() -> None:
    found = [plan.decide_micro_batch(config(), gigabytes * 10**9) for gigabytes in (5, 8, 16, 32, 128)]
    assert found == sorted(found) and found[-1] == 64 and found[0] < 16
    for gigabytes, rows in zip((5, 8, 16, 32, 128), found, strict=True):
        needed = training_bytes(config().model, Pass(rows, dtype="bfloat16"), "muon", saving=True)
        assert needed.total - needed.base <= gigabytes * 10**9
        micro_steps = -(-64 // rows)
        assert rows == -(-64 // micro_steps)
    assert plan.decide_micro_batch(config(), 128 * 10**9, rows=16) == 16


def test_a_model_that_may_not_fit_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.decide_micro_batch(config(), 10**9) == 1
    assert "memory may run out: one row at a time takes about" in capsys.readouterr().err


@pytest.mark.parametrize(("free", "said"), [(16 * 10**9, ""), (5 * 10**9, "8 rows at a time take about"), (0, "")])
def test_rows_that_were_chosen_stand_but_what_may_not_fit_is_said(
    free: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "known_memory", lambda device: free)
    assert fit_rows(config(8), Place("cpu")).micro_batch_size == 8
    assert said in (heard := capsys.readouterr().err) and bool(said) == bool(heard)
    assert not said or "--micro_batch_size none" in heard


def test_a_mesh_s_processes_hold_their_share_alone(capsys: pytest.CaptureFixture[str]) -> None:
    settings = replace(config(), model=PRESETS["gpt3-6.7b"], device="cuda", recompute="full")
    assert plan.decide_micro_batch(settings, 80 * 10**9, rows=8) == 1
    assert "memory may run out" in capsys.readouterr().err
    assert plan.decide_micro_batch(settings, 80 * 10**9, 8, MeshSizes(dp_shard=64)) == 8
    assert "memory may run out" not in capsys.readouterr().err
