"""What is decided once, before step 1: micro-batch, number of steps, how often to look. Stored in the run's config."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

from gpt2 import hardware
from gpt2.distributed.estimate import shares
from gpt2.distributed.mesh import MeshSizes
from gpt2.model.memory import Held, Pass, micro_batch, training_bytes
from gpt2.runtime import say
from gpt2.train.config import TrainConfig
from gpt2.train.loop import Run, take_step

MEMORY_SHARE = 0.9  # of what is free: the memory model is within 10 % of what is measured
SAFETY = 0.96  # of a time budget: machines drift
MEASURE_SECONDS = 2.0


def decide_micro_batch(
    config: TrainConfig, free_bytes: int, rows: int | None = None, mesh: MeshSizes | None = None
) -> int:
    """The most of a process's `rows` a step (all of them, if alone) that fit the free memory, in even micro-steps.

    On a mesh of several processes it holds its share of the model alone.
    """
    rows = config.batch_rows if rows is None else rows
    if config.micro_batch_size is not None:
        return min(config.micro_batch_size, rows)
    held, step = pass_of(config, 1, 1, mesh)
    room = int(free_bytes * MEMORY_SHARE)
    warn_if_tight(config, room, 1, 1, mesh)
    return micro_batch(config.model, step, config.optim.optimizer, rows, room, config.async_save, held)


def warn_if_tight(
    config: TrainConfig, free_bytes: int, rows: int, micro_steps: int, mesh: MeshSizes | None = None
) -> None:
    """Say so where passes of so many rows may take more than is free."""
    held, step = pass_of(config, rows, micro_steps, mesh)
    needed = training_bytes(config.model, step, config.optim.optimizer, held, config.async_save)
    if needed.total - needed.base > free_bytes:
        wanted = f"{rows} rows at a time take" if rows > 1 else "one row at a time takes"
        less = "--micro_batch_size none chooses fewer" if rows > 1 else "--recompute full or a smaller model takes less"
        say(
            f"memory may run out: {wanted} about {(needed.total - needed.base) / 1e9:.1f} GB, "
            f"there is room for {free_bytes / 1e9:.1f} GB; {less}"
        )


def pass_of(config: TrainConfig, rows: int, micro_steps: int, mesh: MeshSizes | None) -> tuple[Held | None, Pass]:
    """A process's pass as the memory model wants it, and what the process holds of the model on a mesh of several."""
    device = "cuda" if config.device.startswith("cuda") else "cpu"
    held = shares(config.model, mesh) if mesh and mesh.world_size > 1 else None
    tp = mesh.tp if mesh else 1
    return held, Pass(rows, 0, config.dtype, device, config.recompute, tp, micro_steps, mesh=held is not None)


def decide_steps(config: TrainConfig, tokens_per_epoch: int, measure: Callable[[], float]) -> int:
    """max_steps as given, else by tokens, by the clock (`measure` returns seconds of a full step), or by epochs."""
    if config.max_steps is not None:
        return config.max_steps
    if config.max_tokens is not None:
        return max(1, config.ramp.steps_for(config.max_tokens))
    if config.max_seconds is None:
        return max(1, config.ramp.nearest_step(config.epochs * tokens_per_epoch))
    begin = time.perf_counter()
    per_token = measure() / (config.batch_rows * config.model.context_length)
    left = config.max_seconds * SAFETY - (time.perf_counter() - begin)
    evaluation = config.eval_tokens * per_token / 3  # forward only
    if config.eval_every:
        per_token += evaluation / (config.eval_every * config.batch_rows * config.model.context_length)
        return whole_steps(config, left / per_token)
    # By default a tenth of the run apart; the last one, over all of the split, comes after the clock.
    return whole_steps(config, (left - 9 * evaluation) / per_token)


def whole_steps(config: TrainConfig, tokens: float) -> int:
    """Steps that have no more than so many tokens, but one at least."""
    return max(1, config.ramp.steps_for(math.floor(tokens) + 1) - 1)


def decide_rhythm(config: TrainConfig, max_steps: int) -> TrainConfig:
    """Fill in how often to evaluate, save and sample."""
    eval_every = config.eval_every or max(1, math.ceil(max_steps / 10))
    return replace(
        config,
        max_steps=max_steps,
        eval_every=eval_every,
        save_every=config.save_every or eval_every,
        sample_every=config.sample_every or max(1, math.ceil(max_steps / 4)),
    )


def seconds_per_step(run: Run, config: TrainConfig) -> float:
    """Time of a full batch's step, each length of rows by its share, on a run that is thrown away."""

    def timed(step: int) -> float:
        return time_steps(run, step) * config.batch_rows / config.ramp.rows_at(step)

    share = config.short_fraction if config.short_length else 0.0
    full = timed(run.max_steps - 1)
    return full if share == 0.0 else share * timed(0) + (1 - share) * full


def time_steps(run: Run, step: int) -> float:
    """Seconds of a step at this place in the run, the first left out: kernels compile, memory is mapped.

    The faster quarter's, not the median: what else the machine does in these few seconds says little of the run.
    """
    run.state.step = step
    take_step(run)
    times: list[float] = []
    begin = time.perf_counter()
    while run.ranks.any(len(times) < 8 or (time.perf_counter() - begin < MEASURE_SECONDS and len(times) < 50)):
        times.append(take_step(run).seconds)
    return statistics.quantiles(times, n=4)[0]


def free_memory(device: str) -> int:
    """Bytes that a process may still take on the device."""
    return known_memory(device) or 4 * 2**30  # not Linux: what any machine of the last ten years has


def known_memory(device: str) -> int:
    """The same, 0 where nobody says."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    return hardware.memory()[1]
