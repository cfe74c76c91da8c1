"""A tiny model on a few fixed rows, alone or as several ranks that are threads: what the loop's tests train."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from gpt2.distributed.ranks import ALONE, Ranks
from gpt2.model.config import IGNORE_INDEX, GPTConfig
from gpt2.model.gpt import GPT
from gpt2.train.config import OptimConfig
from gpt2.train.loop import Batch, Run, TrainState
from gpt2.train.optim import Optimizer
from gpt2.train.weights import Weights

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=32, context_length=16, vocab_size=50)


class Fixed:
    """The same few rows again and again, with very unequal numbers of targets; each rank has its share."""

    def __init__(self, rank: int = 0, ranks: int = 1) -> None:
        dice = torch.Generator().manual_seed(3)
        inputs = torch.randint(50, (12, 16), generator=dice)
        targets = torch.randint(50, (12, 16), generator=dice)
        for row in range(12):
            targets[row, : row + 3] = IGNORE_INDEX
        mine = slice(rank * 12 // ranks, (rank + 1) * 12 // ranks)
        self.batch = Batch(inputs[mine], targets[mine])

    def next(self, step: int) -> Batch:
        return self.batch

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        pass

    def epochs(self) -> dict[str, float]:
        return {}


class Table:
    """Where threads that play ranks meet: each puts a value down and takes all of them."""

    def __init__(self, ranks: int) -> None:
        self.barrier, self.values = threading.Barrier(ranks, timeout=60), [None] * ranks

    def exchange(self, rank: int, value: object) -> list[object]:
        self.values[rank] = value
        self.barrier.wait()
        found = list(self.values)
        self.barrier.wait()
        return found


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    table: Table | None = None

    def total(self, values: Sequence[float]) -> list[float]:
        return [math.fsum(column) for column in zip(*self.table.exchange(self.rank, values), strict=True)]

    def any(self, flag: bool) -> bool:
        return any(self.table.exchange(self.rank, flag))


class SummedWeights(Weights):
    """Gradients summed over the ranks, as a mesh does it."""

    ranks: ThreadRanks

    def unscale(self) -> None:
        super().unscale()
        theirs = self.ranks.table.exchange(self.ranks.rank, [p.grad.clone() for p in self.parameters])
        for parameter, *gradients in zip(self.parameters, *theirs, strict=True):
            parameter.grad.copy_(sum(gradients))


def make_run(
    micro_batch_size: int = 12, dtype: torch.dtype = torch.float32, optimizer: str = "muon", ranks: Ranks = ALONE
) -> Run:
    torch.manual_seed(0)
    weights = Weights(GPT(CONFIG), dtype)
    short = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32  # of Muon's iteration
    if isinstance(ranks, ThreadRanks):
        weights.__class__, weights.ranks = SummedWeights, ranks
    return Run(
        weights=weights,
        optimizer=Optimizer(weights.master, OptimConfig(optimizer=optimizer), short),  # type: ignore[arg-type]
        batches=Fixed(ranks.data_rank, ranks.data_size),
        state=TrainState(),
        ranks=ranks,
        rate=lambda step: 1.0,
        max_steps=5,
        micro_batch_size=micro_batch_size,
        grad_clip=1.0,
        device="cpu",
    )


def side_by_side(
    count: int, micro_batch_size: int, work: Callable[[Run], object], optimizer: str = "muon"
) -> list[object]:
    """What `work` returns for each of `count` runs that train together, a thread each."""
    table = Table(count)
    runs = [
        make_run(micro_batch_size, optimizer=optimizer, ranks=ThreadRanks(r, r, count, r, count, table))
        for r in range(count)
    ]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, runs))
