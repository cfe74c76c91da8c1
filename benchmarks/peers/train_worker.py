"""One side of the training benchmark in a process of its own: reads `[method, arguments...]`, answers with JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2.hardware import synchronize
from peers.train_plain import NanoGPT, PlainLoop, Shape


class Side:
    """A loop that takes steps on given data; `kind` is ours, autocast, bf16, float32 or hf, with `-compiled` or not."""

    def __init__(self, kind: str, shape: Shape, device: str, data: Path, options: dict[str, Any]) -> None:
        self.shape, self.device = shape, device
        self.tokens = np.load(data, mmap_mode="r")
        self.loop = open_loop(kind, shape, device, options)
        self.taken = 0

    def rows(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The step's rows, the same on every side: inputs and targets (B, T)."""
        dice = np.random.default_rng(step)
        starts = dice.integers(len(self.tokens) - self.shape.length - 1, size=self.shape.rows)
        rows = np.stack([self.tokens[start : start + self.shape.length + 1] for start in starts]).astype(np.int64)
        return torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, 1:].copy())

    def steps(self, count: int) -> dict[str, list[float]]:
        """Take steps; seconds and loss of each."""
        seconds, losses = [], []
        for _ in range(count):
            rows = self.rows(self.taken)
            begin = time.perf_counter()
            losses.append(self.loop.step(*rows))
            synchronize(self.device)
            seconds.append(time.perf_counter() - begin)
            self.taken += 1
        return {"seconds": seconds, "losses": losses}

    def peak(self, count: int) -> int:
        """Bytes resident at most (on a GPU: allocated) during some steps, after one to warm up."""
        self.steps(1)
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
            self.steps(count)
            return int(torch.cuda.max_memory_allocated())
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's own mark of the peak starts anew
        self.steps(count)
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def open_loop(kind: str, shape: Shape, device: str, options: dict[str, Any]) -> Any:
    """The loop of a kind, from the weights that seed 0 gives nanoGPT's model."""
    torch.manual_seed(0)
    name, _, compiled = kind.partition("-")
    if name == "hf":
        from peers.train_hf import TransformersLoop

        return TransformersLoop(shape, device, bool(compiled), **options)
    state = NanoGPT(shape).state_dict()
    if name == "ours":
        from peers.train_ours import OurLoop

        return OurLoop(shape, device, state, **options)
    loop = PlainLoop(shape, device, name, bool(compiled))
    loop.load(state)
    return loop


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not pass for an answer
    kind, shape, device, data, options = (json.loads(word) for word in sys.argv[1:])
    side = Side(kind, Shape(**shape), device, Path(data), options)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(getattr(side, name)(*arguments)), file=answers, flush=True)


if __name__ == "__main__":
    main()
