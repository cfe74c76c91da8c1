"""Claim: a checkpoint that is written beside training costs under 3 % of the steps' time, one every 100 steps.

`python benchmarks/saving.py [--preset gpt2-124m] [--saves 3]`. Without a preset the 12M model of benchmarks/train.py
(6 layers of 384, vocabulary 4,096, batch 16 x 256) is trained. A checkpoint's cost is the time that the main thread
spends in it (a copy of weights and optimizer) and what the steps beside the writing thread take longer than others;
next to it stands what it costs with `async_save = false`. Evaluation is left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2.data.shards import Meta, SplitMeta
from gpt2.train.loop import Run, StepResult
from gpt2.train.pretrain import pretrain
from gpt2.train.save import Save

BETWEEN = 8  # steps from one checkpoint to the next
MOST, RHYTHM = 0.03, 100  # share of the steps' time, with a checkpoint every so many steps
SMALL = {"n_layer": 6, "n_head": 6, "n_embd": 384, "context_length": 256, "batch_tokens": 4096, "micro_batch_size": 16}
LARGE = {"batch_tokens": 2048, "micro_batch_size": 2}


@dataclass
class Watch:
    """Seconds of each step, whether a checkpoint was being written meanwhile, and of each stay in the hook."""

    steps: list[tuple[float, bool]] = field(default_factory=list)
    stays: list[float] = field(default_factory=list)
    written: list[float] = field(default_factory=list)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--preset")
    options.add_argument("--saves", type=int, default=3)
    given = options.parse_args()
    print(f"{given.preset or '12M'}, {torch.get_num_threads()} threads, a checkpoint every {BETWEEN} steps\n")
    print("| async_save | a step, s | hook, s | slower steps, s | written in, s | cost, steps | is 3 % at every |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokens(folder / "tokens", 50257 if given.preset else 4096)
        seen: dict[bool, Watch] = {}
        for mode in (True, False):
            seen[mode] = watch(folder, given.preset, given.saves, mode)
            print(row(mode, seen[mode]), flush=True)
    share = cost_in_steps(seen[True]) / RHYTHM
    print(f"\nbeside training, every {RHYTHM} steps: {share:.1%} (wanted: under {MOST:.0%})")
    if share >= MOST:
        sys.exit("missed")


def watch(folder: Path, preset: str | None, saves: int, mode: bool) -> Watch:
    """Train a little and look at the clock."""
    seen, call, write = Watch(), Save.__call__, Save.write
    was_writing = False

    def timed_call(self: Save, run: Run, result: StepResult) -> None:
        nonlocal was_writing
        seen.steps.append((result.seconds, was_writing or self.thread.running))
        start = time.perf_counter()
        call(self, run, result)
        was_writing = self.thread.running
        if run.state.step % BETWEEN == 0:
            seen.stays.append(time.perf_counter() - start)

    def timed_write(self: Save, *arguments: Any) -> None:
        start = time.perf_counter()
        write(self, *arguments)
        seen.written.append(time.perf_counter() - start)

    shape = {"preset": preset, **LARGE} if preset else SMALL
    steps = BETWEEN * (saves + 1) - 1  # the last checkpoint has its steps, too
    rhythm = {"max_steps": steps, "save_every": BETWEEN, "eval_every": steps, "eval_tokens": 1, "sample_every": steps}
    Save.__call__, Save.write = timed_call, timed_write
    try:
        out = folder / f"run-{mode}"
        pretrain(data=str(folder / "tokens"), out=str(out), async_save=mode, quiet=True, **shape, **rhythm)
    finally:
        Save.__call__, Save.write = call, write
    return seen


def usual_step(seen: Watch) -> float:
    """Seconds of a step beside which nothing is written."""
    return statistics.median(seconds for seconds, writing in seen.steps[2:] if not writing)


def slower_steps(seen: Watch) -> float:
    """Seconds that the steps beside one checkpoint take longer, together."""
    usual = usual_step(seen)
    return sum(seconds - usual for seconds, writing in seen.steps[2:] if writing) / len(seen.stays)


def cost_in_steps(seen: Watch) -> float:
    """What one checkpoint costs, as so many steps."""
    return (statistics.median(seen.stays) + slower_steps(seen)) / usual_step(seen)


def row(mode: bool, seen: Watch) -> str:
    """The table's line."""
    usual, slower, cost = usual_step(seen), slower_steps(seen), cost_in_steps(seen)
    hook = statistics.median(seen.stays)
    written = statistics.median(seen.written)
    return (
        f"| {str(mode).lower()} | {usual:.3f} | {hook:.3f} | {slower:.3f} | {written:.3f} | {cost:.2f} "
        f"| {cost / MOST:.0f} steps |"
    )


def write_tokens(folder: Path, vocabulary: int, train: int = 400_000, val: int = 2000) -> None:
    """Made-up tokens: what is learned does not matter here."""
    folder.mkdir()
    ids = np.random.default_rng(5).integers(0, vocabulary, train + val).astype("<u2")
    (folder / "train.bin").write_bytes(ids[:train].tobytes())
    (folder / "val.bin").write_bytes(ids[train:].tobytes())
    sides = {name: SplitMeta((f"{name}.bin",), size) for name, size in (("train", train), ("val", val))}
    Meta(vocab_size=vocabulary, **sides).save(folder)


if __name__ == "__main__":
    main()
