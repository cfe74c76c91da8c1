"""The one training loop. It is handed its ingredients: pre-training and fine-tuning only build them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gpt2.distributed.ranks import ALONE, Ranks
from gpt2.errors import UserError
from gpt2.model.config import IGNORE_INDEX
from gpt2.model.masks import Packed
from gpt2.train.guard import KEEP, BadStep, Guard, Habits
from gpt2.train.optim import Optimizer
from gpt2.train.rng import put_torch_dice, torch_dice
from gpt2.train.weights import Weights


@dataclass
class TrainState(Habits):
    """Where a run stands. With weights, optimizer, random numbers and the data's cursor it is all of it."""

    step: int = 0  # optimizer steps done, skipped ones counted
    tokens: int = 0  # trained on, over all ranks: targets in pre-training, all that was read in fine-tuning
    elapsed: float = 0.0  # seconds of training, over all sessions
    best_val_loss: float = math.inf
    best_step: int = 0
    halvings: int = 0  # times that memory ran out: micro-batches are so often halved
    validated: int = 0  # the step of the last validation


@dataclass(frozen=True)
class Batch:
    """One optimizer step's rows on this rank: int64 (rows, T); targets already shifted.

    `segment_ids` (rows, T), where given, tells the documents of a row apart: none sees another. `extra` is what an
    objective needs besides, (rows, ...) each (example_batches.py says what a kind of examples brings).
    """

    inputs: Tensor
    targets: Tensor
    segment_ids: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: int | None = None  # that the model reads, padding left out; None: as many as the objective counts

    def part(self, rows: slice, device: str) -> Batch:
        """Some of the rows, on the device."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor[rows].to(device, non_blocking=True)

        segments = None if self.segment_ids is None else moved(self.segment_ids)
        extra = {name: moved(tensor) for name, tensor in self.extra.items()}
        return Batch(moved(self.inputs), moved(self.targets), segments, extra)

    @property
    def context(self) -> Packed | None:
        """Who may look at whom in these rows; None: each row is one text."""
        return None if self.segment_ids is None else Packed(self.segment_ids)


class Objective(Protocol):
    """What a step makes small: a sum over what rows hold, divided by the count of it in the whole step.

    `worker` is a GPT, or one with a head beside its own (`worker.body` gives hidden states for it); it is handed rows
    on its device. Sums, never means: how a step is cut into rows and processes then changes nothing.
    """

    def count(self, batch: Batch) -> int:
        """What the rows hold of what the loss is a mean over: targets, labelled texts, pairs."""
        ...

    def loss(self, worker: nn.Module, batch: Batch) -> Tensor:
        """Summed loss of some rows (nats), a float32 scalar with its graph."""
        ...

    def measure(self, worker: nn.Module, batch: Batch) -> dict[str, float]:
        """For validation, without a graph: sums over the rows, to be divided by their count; "loss" is one of them.

        Others get the name under which they are reported: "accuracy", "margin".
        """
        ...


class TokenLoss:
    """The language model's own: nats of the targets."""

    def count(self, batch: Batch) -> int:
        return int((batch.targets != IGNORE_INDEX).sum())

    def loss(self, worker: nn.Module, batch: Batch) -> Tensor:
        loss: Tensor = worker(batch.inputs, batch.targets, batch.context)[0]
        return loss

    def measure(self, worker: nn.Module, batch: Batch) -> dict[str, float]:
        return {"loss": float(self.loss(worker, batch))}


class Batches(Protocol):
    """An endless source of batches whose place is a few numbers."""

    def next(self, step: int) -> Batch: ...

    def state(self) -> dict[str, Any]: ...

    def load(self, state: Mapping[str, Any]) -> None: ...

    def epochs(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did: mean loss over what counts (nats), gradient norm before clipping; over all ranks."""

    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    length: int  # tokens of a row
    seconds: float
    skipped: bool = False
    note: str = ""  # what a person should hear of it


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
    guard: Guard = KEEP
    objective: Objective = field(default_factory=TokenLoss)
    asked: bool = False  # this process wishes to end: set by signals and hooks
    ended: str = ""  # why there is nothing to go on with before max_steps, for a person; set alike in all processes
    stopping: bool = False  # all processes have agreed to: the loop ends after this step's hooks


class OutOfMemory(UserError):
    """The step does not fit the device's memory with so many rows at a time, and cannot be taken with fewer here."""

    def __init__(self, message: str, rows: int) -> None:
        super().__init__(message)
        self.rows = rows


class Interrupted(Exception):
    """Somebody asked a lone process to end, between two micro-batches."""


@dataclass(frozen=True)
class Mark:
    """Where a run stood before the step in hand, which has not touched weights or optimizer yet."""

    state: TrainState
    cursor: Mapping[str, Any]
    dice: Mapping[str, Tensor]
    scale: tuple[float, int]

    @classmethod
    def of(cls, run: Run) -> Mark:
        scale = run.weights.loss_scale, run.weights.good_steps
        return cls(replace(run.state), dict(run.batches.state()), torch_dice(run.device), scale)

    def put_back(self, run: Run) -> None:
        """As if the step had never been begun, but for what it has learned of the memory."""
        run.state = replace(self.state, halvings=run.state.halvings)
        run.batches.load(self.cursor)
        put_torch_dice(self.dice, run.device)
        run.weights.loss_scale, run.weights.good_steps = self.scale


class Hook(Protocol):
    """Called after every step; evaluation, samples, saving and talk are hooks."""

    def __call__(self, run: Run, result: StepResult) -> None: ...


def fit(run: Run, hooks: Sequence[Hook]) -> TrainState:
    """Train until max_steps or until someone sets `run.asked`. The state is good after every step.

    A lone process that is asked breaks off the step in hand, as a BadStep does, which is raised: the run then stands
    before it.
    """
    run.weights.train()
    while run.state.step < run.max_steps and not run.stopping:
        before = Mark.of(run)
        try:
            result = take_step(run)
        except (BadStep, Interrupted) as error:
            before.put_back(run)
            if isinstance(error, BadStep):
                raise
            run.stopping = True
            break
        run.state.step += 1
        run.state.tokens += result.tokens
        run.state.elapsed += result.seconds
        run.state.skipped += result.skipped
        # Once a step and before the hooks: a signal that came between two of them would part the processes.
        run.stopping = run.ranks.any(run.asked)
        for hook in hooks:
            hook(run, result)
    return run.state


def take_step(run: Run) -> StepResult:
    """One optimizer step: micro-batches summed, divided by the true number of targets, clipped, applied."""
    begin = time.perf_counter()
    weights, batch, step = run.weights, run.batches.next(run.state.step), run.state.step + 1
    mine = run.objective.count(batch)
    counted, read = run.ranks.total([mine, mine if batch.tokens is None else batch.tokens])
    count = max(1, round(counted))
    nats, note = backpropagate(run, batch, count)
    weights.unscale()
    mean, norm = run.ranks.total([nats])[0] / count, weights.clip(run.grad_clip)
    factor = run.rate(run.state.step)
    lowest_scale = weights.loss_scale == 1.0  # where a float16 overflow has no excuse left
    taken = weights.accept(norm)
    run.state.expect(batch.inputs.size(1))
    if taken or lowest_scale:
        leap = run.guard.look(run.state, mean, norm, step)
        taken, note = taken and not leap, note or (leap and f"skipped: {leap}")
    if taken:
        run.optimizer.step(factor, run.state.step / run.max_steps)
        weights.publish()
    rate, seconds = run.optimizer.config.learning_rate * factor, time.perf_counter() - begin
    return StepResult(mean, norm, rate, max(1, round(read)), batch.inputs.size(1), seconds, not taken, note)


def backpropagate(run: Run, batch: Batch, count: int) -> tuple[float, str]:
    """Gradients of the batch's loss / count, and its summed loss on this rank, with micro-batches that fit the memory.

    If memory runs out, the step begins anew with half of the rows at a time: same data, same random numbers.
    """
    note, dice = "", torch_dice(run.device)
    while True:
        try:
            return run_passes(run, batch, count), note
        except torch.OutOfMemoryError:
            pass  # the retry stands outside: inside, the error would hold on to the activations
        note = halve(run, batch)
        put_torch_dice(dice, run.device)


def run_passes(run: Run, batch: Batch, count: int) -> float:
    """Forward and backward, one micro-batch after another; returns the summed loss."""
    weights = run.weights
    weights.clear_gradients()
    total = torch.zeros((), device=run.device)
    rows = micro_batch_rows(run, batch.inputs.size(1))
    for start in range(0, len(batch.inputs), rows):
        if run.asked and run.ranks.world_size == 1:  # among several the others wait in this step's sums
            raise Interrupted
        loss = run.objective.loss(weights.worker, batch.part(slice(start, start + rows), run.device))
        weights.backward(loss / count, last=start + rows >= len(batch.inputs))
        total += loss.detach()
    return float(total)


def micro_batch_rows(run: Run, length: int) -> int:
    """Rows of `length` tokens at a time: as many tokens as `micro_batch_size` rows of a full context have."""
    rows = max(1, run.micro_batch_size >> run.state.halvings)
    return max(1, rows * run.weights.master.config.context_length // length)


def halve(run: Run, batch: Batch) -> str:
    """Half the micro-batch from now on, or OutOfMemory where that is no way out; says what was done."""
    # Rows of a full context, as micro_batch_size has them; no more were taken than there are.
    there = -(-batch.inputs.numel() // run.weights.master.config.context_length)
    rows = min(run.micro_batch_size >> run.state.halvings, there)
    several = run.ranks.world_size > 1
    where = f"process {run.ranks.rank}: out of memory" if several else f"out of memory on {run.device}"
    if rows <= 1:
        way_out = "use a shorter context_length, a smaller model or recompute = full"
        raise OutOfMemory(f"{where} with one row at a time; {way_out}", 1)
    if several:  # the others wait in this step's sums: they cannot be asked (shortage.py)
        raise OutOfMemory(f"{where} with {rows} rows at a time; choose a smaller --micro_batch_size", rows)
    run.state.halvings = fewer(run.micro_batch_size, rows)
    if run.device.startswith("cuda"):
        torch.cuda.empty_cache()
    left = run.micro_batch_size >> run.state.halvings
    return f"out of memory with {rows} rows at a time; going on with {left}, the same rows to a step"


def fewer(micro_batch_size: int, rows: int) -> int:
    """How often to halve the micro-batch for it to be smaller than so many rows; one is left at least."""
    return next(count for count in range(64) if micro_batch_size >> count < max(2, rows))
