"""The papers' recipes as whole runs: growing batches, mixtures, masked documents, rates by tokens, leaps skipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_tokens import write_tokens

from gpt2.errors import UserError
from gpt2.train.config import TrainConfig
from gpt2.train.loop import Run, StepResult
from gpt2.train.metrics import read_metrics
from gpt2.train.pretrain import pretrain, resume

Tiny = Callable[..., TrainConfig]


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    """All of it at once, with texts of 900 and 400 tokens that are read more than once."""
    parts = [write_tokens(tmp_path / name, length) for name, length in (("web", 900), ("books", 400))]
    for folder in parts:
        text = (folder / "meta.json").read_text().replace('"eot_id": null', '"eot_id": 7')
        (folder / "meta.json").write_text(text)
    return {
        "data": str(parts[0]),
        "mixture": (f"{parts[0]}=0.6", f"{parts[1]}=0.4"),
        "pack": "masked",
        "max_steps": None,
        "max_tokens": 1600,
        "batch_ramp_from": 32,
        "batch_ramp_tokens": 800,
        "micro_batch_size": 3,
        "on_outlier": "skip",
        "save_every": 8,
        "optim": {"optimizer": "adamw"},
        "schedule": {"schedule": "cosine", "warmup_tokens": 200, "decay_tokens": 1200, "min_lr": 0.1},
    }


def trace(run: Path) -> list[tuple[Any, ...]]:
    keys = ("step", "tokens", "train/loss", "grad_norm", "learning_rate")
    return [tuple(line[key] for key in keys) for line in read_metrics(run) if "train/loss" in line]


def test_tokens_and_rates_are_the_recipes_and_a_resumed_run_has_the_same_bits(
    tiny: Tiny, tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pretrain(tiny(out=str(tmp_path / "whole"), **recipe), quiet=True)
    lines = trace(whole.folder)
    config = tiny(**recipe | {"max_steps": len(lines), "model": {"vocab_size": 61}})
    assert config.ramp.rows_at(0) == 2 and config.ramp.rows_at(len(lines) - 1) == 8
    assert 1600 <= whole.state.tokens < 1600 + 128
    for step, (number, tokens, _, _, rate) in enumerate(lines):
        assert (number, tokens) == (step + 1, config.ramp.tokens_before(step + 1))
        assert rate == pytest.approx(config.optim.learning_rate * config.rate_at(step))
    assert lines[-1][4] == pytest.approx(0.1 * config.optim.learning_rate)

    def fail(self: object, run: Run, result: StepResult) -> None:
        if run.state.step == 13:
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("gpt2.train.hooks.Evaluate.__call__", fail)
        with pytest.raises(ZeroDivisionError):
            pretrain(tiny(out=str(tmp_path / "broken"), **recipe), quiet=True)
    assert trace(resume(tmp_path / "broken", quiet=True).folder) == lines


def test_another_text_in_a_mixture_is_not_resumed(tiny: Tiny, tmp_path: Path, recipe: dict[str, Any]) -> None:
    run = pretrain(tiny(out=str(tmp_path / "run"), **recipe | {"max_steps": 3}), quiet=True)
    path = tmp_path / "books" / "train.bin"
    path.write_bytes(path.read_bytes()[2:] + b"\0\0")
    with pytest.raises(UserError, match="the text books changed since"):
        resume(run.folder, quiet=True)


def test_the_run_says_how_often_each_text_is_read_and_counts_it(
    tiny: Tiny, tmp_path: Path, recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = pretrain(tiny(out=str(tmp_path / "run"), **recipe))
    assert "epochs of web" in capsys.readouterr().err
    (*_, last) = (line["epochs"] for line in read_metrics(run.folder) if "epochs" in line)
    assert last["web"] == pytest.approx(0.6 * run.state.tokens / 900, rel=0.1)
    assert last["books"] == pytest.approx(0.4 * run.state.tokens / 400, rel=0.1)
