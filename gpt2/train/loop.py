"""The one training loop. It is handed its ingredients: pre-training and fine-tuning only build them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpt2.distributed.ranks import ALONE, Ranks
from gpt2.errors import UserError
from gpt2.model.config import IGNORE_INDEX
from gpt2.model.masks import Packed
from gpt2.train.optim import Optimizer, clip_gradients
from gpt2.train.weights import Weights


@dataclass
class TrainState:
    """Where a run stands. With weights, optimizer, random numbers and the data's cursor it is all of it."""

    step: int = 0  # optimizer steps taken
    tokens: int = 0  # target tokens trained on
    elapsed: float = 0.0  # seconds of training, over all sessions
    best_val_loss: float = math.inf
    best_step: int = 0


@dataclass(frozen=True)
class Batch:
    """One optimizer step's rows on this rank: int64 (rows, T); targets already shifted."""

    inputs: Tensor
    targets: Tensor
    segment_ids: Tensor | None = None


class Batches(Protocol):
    """An endless source of batches whose place is a few numbers."""

    def next(self, step: int) -> Batch: ...

    def state(self) -> dict[str, int]: ...


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did: mean loss over its targets (nats), gradient norm before clipping."""

    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    length: int  # tokens of a row
    seconds: float
    skipped: bool = False


@dataclass
class Run:
    """The ingredients, together; hooks read it."""

    weights: Weights
    optimizer: Optimizer
    batches: Batches
    state: TrainState
    rate: Callable[[int], float]  # step -> factor of the full learning rates
    max_steps: int
    micro_batch_size: int  # rows of a full context; shorter rows are taken more at a time
    grad_clip: float
    device: str
    ranks: Ranks = ALONE
    stopping: bool = False  # set by a hook or a signal: the loop ends after this step


class Hook(Protocol):
    """Called after every step; evaluation, samples, saving and talk are hooks."""

    def __call__(self, run: Run, result: StepResult) -> None: ...


class NonFiniteLoss(UserError):
    """The loss or the gradient is no number any more."""


def fit(run: Run, hooks: Sequence[Hook]) -> TrainState:
    """Train until max_steps or until someone sets `run.stopping`. The state is good after every step."""
    run.weights.train()
    while run.state.step < run.max_steps and not run.stopping:
        result = take_step(run)
        run.state.step += 1
        run.state.tokens += result.tokens
        run.state.elapsed += result.seconds
        for hook in hooks:
            hook(run, result)
    return run.state


def take_step(run: Run) -> StepResult:
    """One optimizer step: micro-batches summed, divided by the true number of targets, clipped, applied."""
    begin = time.perf_counter()
    weights, batch = run.weights, run.batches.next(run.state.step)
    count = max(1, int((batch.targets != IGNORE_INDEX).sum()))
    weights.clear_gradients()
    total = torch.zeros((), device=run.device)
    rows = run.micro_batch_size * (run.weights.master.config.context_length // batch.inputs.size(1))
    for start in range(0, len(batch.inputs), rows):
        part = slice(start, start + rows)
        inputs, targets = batch.inputs[part].to(run.device), batch.targets[part].to(run.device)
        context = Packed(batch.segment_ids[part].to(run.device)) if batch.segment_ids is not None else None
        loss, _ = weights.worker(inputs, targets, context)
        weights.backward(loss / count)
        total += loss.detach()
    weights.unscale()
    norm = float(clip_gradients(weights.parameters, run.grad_clip))
    factor, mean = run.rate(run.state.step), float(total) / count
    lowest_scale = weights.loss_scale == 1.0  # where a float16 overflow has no excuse left
    taken = weights.accept(norm)
    if taken or lowest_scale:
        check_finite(mean, norm, run.state.step + 1)
    if taken:
        run.optimizer.step(factor, run.state.step / run.max_steps)
        weights.publish()
    learning_rate = run.optimizer.config.learning_rate * factor
    seconds = time.perf_counter() - begin
    return StepResult(mean, norm, learning_rate, count, batch.inputs.size(1), seconds, skipped=not taken)


def check_finite(loss: float, norm: float, step: int) -> None:
    """Stop before a bad step reaches the weights."""
    for name, value in (("loss", loss), ("gradient norm", norm)):
        if not math.isfinite(value):
            raise NonFiniteLoss(f"step {step}: the {name} is {value}")
