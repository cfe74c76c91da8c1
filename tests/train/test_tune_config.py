"""What fine-tuning chooses by itself, from 200 examples to two million."""

from __future__ import annotations

import pytest

from gpt2.data.examples import Kind
from gpt2.errors import UserError
from gpt2.model.config import GPTConfig
from gpt2.train.tune_config import (
    TuneConfig,
    choose_batch,
    choose_rate,
    compose,
    decide_rhythm,
    fit_to_data,
    held_out_share,
)

SMALL = GPTConfig(n_layer=12, n_head=12, n_embd=768)


@pytest.mark.parametrize(
    ("examples", "batch", "epochs", "held_out"),
    [(200, 8, 5.0, 20), (4_000, 32, 3.0, 400), (60_000, 64, 2.0, 2_000), (2_000_000, 64, 1.0, 2_000)],
)
def test_the_count_of_examples_decides_batch_epochs_and_what_is_held_out(
    examples: int, batch: int, epochs: float, held_out: int
) -> None:
    config = fit_to_data(TuneConfig(), SMALL, examples, 100 * examples, "completion")
    assert (config.batch_examples, config.epochs) == (batch, epochs)
    assert round(held_out_share(config, examples) * examples) == held_out


def test_long_examples_make_small_batches_and_few_ones_a_single_batch() -> None:
    assert choose_batch(2_000_000, 2_000_000 * 1024, "full", "text") == 32
    assert fit_to_data(TuneConfig(), SMALL, 3, 60, "completion").batch_examples == 3


@pytest.mark.parametrize(("examples", "kind", "batch"), [
    (200, "completion", 8), (3_445, "completion", 8), (100_000, "text", 16), (100_000, "label", 64),
])  # fmt: skip
def test_an_adapter_that_writes_takes_smaller_steps(examples: int, kind: Kind, batch: int) -> None:
    assert choose_batch(examples, 100 * examples, "lora", kind) == batch


def test_rates_go_by_width_and_method_unless_they_are_given() -> None:
    assert fit_to_data(TuneConfig(), SMALL, 200, 2000, "completion").learning_rate == pytest.approx(1e-4)
    assert fit_to_data(TuneConfig(method="lora"), SMALL, 200, 2000, "completion").learning_rate == pytest.approx(1e-3)
    assert fit_to_data(TuneConfig(), SMALL, 200, 2000, "preference").learning_rate == pytest.approx(2e-5)
    assert fit_to_data(TuneConfig(learning_rate=0.5), SMALL, 200, 2000, "completion").learning_rate == 0.5


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_rate_rises_falls_and_never_leaves_its_bounds(schedule: str) -> None:
    config = compose(schedule=schedule, max_steps=100)
    rates = [config.rate_at(step) for step in range(100)]
    assert rates[:7] == sorted(rates[:7])
    assert rates[6:] == sorted(rates[6:], reverse=True)
    assert 0.0 < min(rates) <= max(rates) <= 1.0
    assert rates[-1] == (1.0 if schedule == "constant" else pytest.approx(0.0, abs=0.02))


def test_every_evaluation_has_a_checkpoint() -> None:
    config = decide_rhythm(TuneConfig(), 95)
    assert (config.eval_every, config.save_every) == (10, 10)
    assert decide_rhythm(TuneConfig(eval_every=10, save_every=5), 95).save_every == 5
    with pytest.raises(UserError, match="does not divide"):
        decide_rhythm(TuneConfig(eval_every=10, save_every=4), 95)


def test_a_run_s_settings_are_read_back_as_they_were(tmp_path: object) -> None:
    from pathlib import Path

    from gpt2.train.save import write_settings

    folder = Path(str(tmp_path))
    config = compose(model="m", data="d", out=str(folder), method="lora", targets=("c_attn",), columns=("prompt=q",))
    write_settings(folder, config)
    assert compose(folder / "config.toml") == config
    assert "gpt2 finetune --resume" in (folder / "config.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("method", "kind", "rate"),
    [("full", "completion", 2e-3), ("lora", "text", 9e-3), ("full", "label", 3e-4), ("full", "preference", 6e-5)],
)
def test_narrower_models_take_larger_steps(method: str, kind: Kind, rate: float) -> None:
    assert choose_rate(method, kind, 256) == pytest.approx(rate)
