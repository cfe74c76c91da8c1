"""The loss and the step do not depend on how a batch is cut into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from gpt2.errors import UserError
from gpt2.model.config import IGNORE_INDEX, GPTConfig
from gpt2.model.gpt import GPT
from gpt2.train.config import OptimConfig, TrainConfig
from gpt2.train.loop import Batch, NonFiniteLoss, Run, TrainState, fit, take_step
from gpt2.train.optim import Optimizer
from gpt2.train.pretrain import newton_schulz_dtype, pretrain
from gpt2.train.weights import Weights

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=32, context_length=16, vocab_size=50)


class Fixed:
    """The same few rows again and again, with very unequal numbers of targets."""

    def __init__(self) -> None:
        dice = torch.Generator().manual_seed(3)
        inputs = torch.randint(50, (12, 16), generator=dice)
        targets = torch.randint(50, (12, 16), generator=dice)
        for row in range(12):
            targets[row, : row + 3] = IGNORE_INDEX
        self.batch = Batch(inputs, targets)

    def next(self, step: int) -> Batch:
        return self.batch

    def state(self) -> dict[str, int]:
        return {}


def make_run(micro_batch_size: int = 12, dtype: torch.dtype = torch.float32, optimizer: str = "muon") -> Run:
    torch.manual_seed(0)
    weights = Weights(GPT(CONFIG), dtype)
    return Run(
        weights=weights,
        optimizer=Optimizer(weights.master, OptimConfig(optimizer=optimizer), newton_schulz_dtype(dtype)),  # type: ignore[arg-type]
        batches=Fixed(),
        state=TrainState(),
        rate=lambda step: 1.0,
        max_steps=5,
        micro_batch_size=micro_batch_size,
        grad_clip=1.0,
        device="cpu",
    )


@pytest.mark.parametrize("micro_batch_size", [1, 3, 5, 7])
def test_regrouping_micro_batches_changes_nothing(micro_batch_size: int) -> None:
    whole, parts = make_run(12), make_run(micro_batch_size)
    for _ in range(4):
        expected, found = take_step(whole), take_step(parts)
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
        assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
        assert found.tokens == expected.tokens


def test_the_printed_loss_is_the_mean_over_the_true_targets() -> None:
    run = make_run(5)
    batch = run.batches.next(0)
    with torch.no_grad():
        logits = run.weights.master(batch.inputs).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORE_INDEX)
    assert take_step(run).loss == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_short_weights_learn_as_float32_does(dtype: torch.dtype, optimizer: str) -> None:
    exact, short = make_run(optimizer=optimizer), make_run(4, dtype, optimizer)
    for _ in range(10):
        expected, found = take_step(exact), take_step(short)
    assert found.loss == pytest.approx(expected.loss, rel=0.03)
    assert not found.skipped
    assert found.loss < 3.5


def test_a_float16_overflow_skips_the_step_and_lowers_the_scale() -> None:
    run = make_run(dtype=torch.float16)
    run.weights.loss_scale = 2.0**40
    before = [p.clone() for p in run.weights.parameters]
    result = take_step(run)
    assert result.skipped
    assert run.weights.loss_scale == 2.0**39
    assert all(torch.equal(a, b) for a, b in zip(before, run.weights.parameters, strict=True))


def test_a_loss_that_is_no_number_stops_before_the_weights() -> None:
    run = make_run()
    with torch.no_grad():
        run.weights.master.ln_f.bias[0] = math.nan
    before = run.weights.master.wte.weight.clone()
    with pytest.raises(NonFiniteLoss, match="step 1: the loss is nan"):
        fit(run, [])
    assert torch.equal(before, run.weights.master.wte.weight)


def test_a_float16_run_that_is_dead_stops_when_the_scale_has_no_room_left() -> None:
    run = make_run(dtype=torch.float16)
    run.weights.loss_scale = 2.0
    with torch.no_grad():
        run.weights.worker.ln_f.bias[0] = math.nan
    assert take_step(run).skipped
    with pytest.raises(NonFiniteLoss):
        take_step(run)


def test_a_run_that_blows_up_names_the_last_good_checkpoint(tiny: Callable[..., TrainConfig]) -> None:
    poison = {"optim": {"optimizer": "adamw", "learning_rate": 1e30}, "save_every": 1, "grad_clip": 0.0}
    with pytest.raises(UserError, match=r"step \d+: .* is (nan|inf); training stopped; the last good checkpoint"):
        pretrain(tiny(max_steps=20, **poison), quiet=True)
