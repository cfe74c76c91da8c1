"""Several processes that save one checkpoint: what each has done is told to all, an error before anything else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from gpt2.errors import UserError

T = TypeVar("T")
PATIENCE = timedelta(hours=6)
Group = dist.ProcessGroup | None  # None: a lone process


def new_group() -> Group:
    """A group of all processes for saving alone, so that it may talk while training does; None in a lone process.

    All processes must call it, and in the same order as whatever else makes groups. The others wait in it while the
    first writes a large model's folder alone.
    """
    there = dist.is_available() and dist.is_initialized()
    return dist.new_group(backend="gloo", timeout=PATIENCE) if there else None


def rank_in(group: Group) -> int:
    """This process's place in the group; 0 where it is alone."""
    return dist.get_rank(group) if group else 0


def together(group: Group, work: Callable[[], T]) -> list[T]:
    """Every process's result, by rank. An error in one of them is raised in all, so that none waits in vain.

    `work` must not wait for other processes: one that failed does not come.
    """
    if group is None:
        return [work()]
    try:
        mine: Any = work()
    except Exception as error:
        mine = Failed(error)
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group)
    for result in everyone:
        if isinstance(result, Failed):
            raise result.error
    return everyone


class Failed:
    """An error on its way to the other processes; one that could not travel goes as its text."""

    def __init__(self, error: Exception) -> None:
        self.error = error if isinstance(error, (OSError, UserError)) else RuntimeError(f"{type(error)}: {error}")
