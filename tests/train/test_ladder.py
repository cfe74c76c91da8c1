"""The ladder: sizes twice as large, tokens that fit the time; finished sizes and predictions stay as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.errors import UserError
from gpt2.model.gpt import GPT
from gpt2.model.sizes import non_embedding_parameters, parameters
from gpt2.train import climb as climbing
from gpt2.train.climb import climb, read_prediction
from gpt2.train.ladder import (
    EVALUATIONS,
    RUN_SECONDS,
    SAFETY,
    Plan,
    divide,
    held_out_tokens,
    make_rung,
    shapes,
)
from gpt2.train.pretrain import pretrain
from gpt2.train.runs import read_run

vocabularies = st.sampled_from([65, 257, 2048, 4096, 50257])


@given(st.integers(2, 6), st.sampled_from([8, 32, 48, 64]), vocabularies)
def test_the_held_out_size_has_twice_the_parameters_of_the_largest_fitted(sizes: int, base: int, vocab: int) -> None:
    *fitted, last = shapes(sizes, base, vocab)
    assert len(fitted) == sizes
    assert all(parameters(a) < parameters(b) for a, b in pairwise(fitted))
    assert parameters(last) >= 2 * parameters(fitted[-1])
    assert non_embedding_parameters(last) >= 2 * non_embedding_parameters(fitted[-1])
    assert last.head_dim == base == fitted[0].head_dim


def test_what_is_not_embedding_is_blocks_and_last_norm() -> None:
    model = GPT(shapes(2, 16, 257)[1])
    counted = sum(p.numel() for name, p in model.named_parameters() if name.startswith(("h.", "ln_f")))
    assert non_embedding_parameters(model.config) == counted


@given(st.floats(120, 7200), st.lists(st.floats(1e-6, 3e-5), min_size=5, max_size=5), st.integers(1000, 131_072))
def test_tokens_are_the_same_number_a_parameter_and_fill_the_time(
    seconds: float, speeds: list[float], held_out: int
) -> None:
    models = shapes(4, 32, 2048)
    try:
        rungs = divide(models, speeds, seconds, held_out)
    except UserError as error:
        more = float(str(error).split("give ")[1].split()[0])
        assert divide(models, speeds, seconds + 60 * (more + 0.1), held_out)
        return
    ratios = [rung.tokens / rung.parameters for rung in rungs]
    assert max(ratios) == pytest.approx(min(ratios), rel=1e-3)
    spent = sum((rung.tokens + EVALUATIONS * held_out / 3) * each for rung, each in zip(rungs, speeds, strict=True))
    assert spent + RUN_SECONDS * len(rungs) == pytest.approx(SAFETY * seconds, rel=1e-3)
    assert sum(rung.seconds for rung in rungs) == pytest.approx(SAFETY * seconds, rel=1e-2)


def test_evaluations_take_a_tenth_of_the_time_if_that_is_enough_for_some_tokens() -> None:
    speeds = [1e-5, 2e-5, 1e-4]
    assert EVALUATIONS / 3 * sum(speeds) * held_out_tokens(speeds, 100.0, 10**6) == pytest.approx(10.0, rel=1e-3)
    assert held_out_tokens(speeds, 1e4, 10**6) == 131_072 and held_out_tokens(speeds, 1.0, 10**6) == 16_384
    assert held_out_tokens(speeds, 1e4, 5000) == 5000


@pytest.fixture
def plan(tokens: Path) -> Plan:
    rungs = tuple(make_rung(n, model, 2048 * n) for n, model in enumerate(shapes(2, 8, 61), 1))
    return Plan(str(tokens), 1, "cpu", "float32", 500, rungs)


def test_a_plan_is_read_as_it_was_written(plan: Plan, tmp_path: Path) -> None:
    plan.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == plan
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"plan.json: not JSON"):
        Plan.read(tmp_path / "plan.json")


def test_a_size_is_a_run_of_its_own_and_evaluated_on_the_same_tokens(plan: Plan, tmp_path: Path) -> None:
    for rung in plan.rungs:
        config = plan.settings(rung, tmp_path)
        assert config.max_tokens == rung.tokens and config.eval_tokens == 500
        assert (config.model.n_layer, config.model.n_embd) == (rung.n_layer, rung.n_embd)


def test_the_prediction_is_on_disk_before_its_size_is_begun_and_nothing_is_trained_twice(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def watch(config: Any) -> Any:
        begun.append(Path(config.out).name)
        assert (tmp_path / "prediction.json").exists() == (len(begun) == 3)
        return pretrain(config, quiet=True)

    monkeypatch.setattr(climbing, "pretrain", watch)
    prediction, found = climb(plan, tmp_path)
    assert begun == [rung.name for rung in plan.rungs]
    assert prediction == read_prediction(tmp_path / "prediction.json")
    assert prediction.loss == prediction.laws["compute"](found.flops)
    assert prediction.same_as_largest == prediction.points[1].loss
    assert found.tokens == 6144 and found.loss > 0
    assert climb(plan, tmp_path) == (prediction, found) and len(begun) == 3


def test_a_size_that_was_killed_goes_on_and_a_prediction_is_never_written_again(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(config: Any) -> Any:
        if Path(config.out).name == plan.rungs[-1].name:
            pretrain(replace(config, max_steps=1), quiet=True)
            config_of = Path(config.out) / "config.toml"
            config_of.write_text(config_of.read_text().replace("max_steps = 1\n", "max_steps = 3\n"))
            raise KeyboardInterrupt
        return pretrain(config, quiet=True)

    monkeypatch.setattr(climbing, "pretrain", killed)
    with pytest.raises(KeyboardInterrupt):
        climb(plan, tmp_path)
    path = tmp_path / "prediction.json"
    known = json.loads(path.read_text()) | {"loss": 1.5}
    path.write_text(json.dumps(known))
    monkeypatch.undo()
    prediction, found = climb(plan, tmp_path)
    assert prediction.loss == 1.5 and found.tokens == 6144
    assert read_run(tmp_path / plan.rungs[-1].name).state == "done"


def test_too_little_time_is_refused_with_what_it_takes() -> None:
    with pytest.raises(UserError, match=r"fewer than 30 steps; give [\d.]+ --minutes more"):
        divide(shapes(4, 32, 2048), [1e-4] * 5, 60.0, 131_072)


@pytest.mark.parametrize(("slowness", "sizes"), [(1.0, 5), (3.0, 4), (8.0, 3)])
def test_a_shorter_ladder_is_climbed_where_the_time_is_short(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slowness: float, sizes: int
) -> None:
    measured: list[int] = []

    def seconds_per_token(config: Any) -> float:
        measured.append(parameters(config.model))
        return slowness * 3e-11 * measured[-1]

    monkeypatch.setattr(climbing, "seconds_per_token", seconds_per_token)
    ladders = [shapes(count, 32, 2048) for count in (5, 4, 3)]
    plan = climbing.make_plan(Plan(str(tokens), 1, "cpu", "float32"), ladders, 900.0, tmp_path)
    assert len(plan.rungs) == sizes + 1
    assert len(measured) == len(set(measured)), "each size is measured once"
    with pytest.raises(UserError, match="fewer than 30 steps"):
        climbing.make_plan(Plan(str(tokens), 1, "cpu", "float32"), ladders, 20.0, tmp_path)


@pytest.mark.parametrize(("text", "width"), [(5_000_000, 32), (4_000_000, 48), (2_000_000, 64), (1000, 64)])
def test_a_wider_ladder_is_climbed_where_the_text_would_be_read_too_often(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: int, width: int
) -> None:
    def seconds_per_token(config: Any) -> float:
        return 4e-11 * parameters(replace(config.model, vocab_size=2048))

    monkeypatch.setattr(climbing, "seconds_per_token", seconds_per_token)
    monkeypatch.setattr(climbing, "open_split", lambda data, name: range(text))
    ladders, wider = [shapes(3, 32, 2048)], [shapes(3, width, 2048) for width in (48, 64, 512)]
    plan = climbing.make_plan(Plan(str(tokens), 1, "cpu", "float32"), ladders, 900.0, tmp_path, wider)
    assert plan.rungs[0].n_embd == width


def test_what_measuring_a_ladder_in_vain_took_is_not_dealt_out(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def seconds_per_token(config: Any) -> float:
        nonlocal now
        now += 10.0
        return 4e-11 * parameters(replace(config.model, vocab_size=2048))

    monkeypatch.setattr(climbing, "seconds_per_token", seconds_per_token)
    monkeypatch.setattr(climbing.time, "monotonic", lambda: now)
    wider = [shapes(3, 512, 2048)]
    plan = climbing.make_plan(Plan(str(tokens), 1, "cpu", "float32"), [shapes(3, 32, 2048)], 900.0, tmp_path, wider)
    assert plan.rungs[0].n_embd == 32 and now == 80.0
    assert sum(rung.seconds for rung in plan.rungs) == pytest.approx(SAFETY * (900.0 - now), rel=1e-2)


def test_an_error_that_is_not_about_time_is_not_taken_for_one(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(config: Any) -> float:
        raise UserError("no such device")

    monkeypatch.setattr(climbing, "seconds_per_token", broken)
    with pytest.raises(UserError, match="no such device"):
        climbing.make_plan(
            Plan(str(tokens), 1, "cpu", "float32"), [shapes(4, 32, 2048), shapes(3, 32, 2048)], 900.0, tmp_path
        )


def test_the_whole_command_draws_and_tells(
    gpt2: Callable[..., Any], tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT2_SHORT", "1")
    words = ("scale", tokens, "--out", tmp_path / "out", "--sizes", 2, "--base", 8, "--device", "cpu")
    done = gpt2(*words)
    assert done.code == 0, done.err
    assert "predicted by compute, before its training" in done.out and "the same loss as the largest" in done.out
    report = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert report["error"] == pytest.approx(report["predicted"] / report["measured"] - 1)
    assert len(report["points"]) == 3 and set(report["laws"]) == {"parameters", "tokens", "compute"}
    assert (tmp_path / "out" / "scaling.png").read_bytes().startswith(b"\x89PNG")
    again = gpt2(*words)
    assert again.out == done.out and "goes on as it was begun" in again.err


def test_under_torchrun_it_is_refused(gpt2: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = gpt2("scale", "--out", "never")
    assert done.code == 2 and "start it without torchrun" in done.err
