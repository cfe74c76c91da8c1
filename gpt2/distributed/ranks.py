"""This process among those that train together: what they must agree on in every step goes through here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from gpt2.errors import UserError

T = TypeVar("T")


class ToldElsewhere(UserError):
    """An error that the main process reports; this one only ends with it."""


@dataclass(frozen=True)
class Ranks:
    """`data_size` groups read different rows, this process in group `data_rank`; tensor-parallel peers share rows."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    data_rank: int = 0
    data_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the groups that read different rows."""
        return list(values)

    def any(self, flag: bool) -> bool:
        """Whether it holds in any process."""
        return flag

    def wait(self) -> None:
        """Until all processes are here."""

    def share(self, value: T) -> T:
        """The main process's value, in all."""
        return value

    def collect(self, value: T) -> list[T]:
        """Every process's value, in all."""
        return [value]

    def attempt(self, act: Callable[[], T]) -> T:
        """Do `act` in every process; a UserError in any of them ends all, told once, by the main one.

        `act` must not wait for other processes: one that failed does not come.
        """
        return act()


ALONE = Ranks()


@dataclass(frozen=True)
class Together(Ranks):
    """Ranks of an initialised default process group. What is exchanged lies in main memory, by gloo."""

    def total(self, values: Sequence[float]) -> list[float]:
        """As float64, so that counts are exact; tensor-parallel peers bring the same values, hence the division."""
        import torch
        import torch.distributed as dist

        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        peers = self.world_size // self.data_size
        return [value / peers for value in sums.tolist()]

    def any(self, flag: bool) -> bool:
        import torch
        import torch.distributed as dist

        raised = torch.tensor(int(flag))
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return bool(raised)

    def wait(self) -> None:
        self.any(False)

    def share(self, value: T) -> T:
        import torch
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def collect(self, value: T) -> list[T]:
        import torch.distributed as dist

        box: list[Any] = [None] * self.world_size
        dist.all_gather_object(box, value)
        return box

    def attempt(self, act: Callable[[], T]) -> T:
        result, fault = None, None
        try:
            result = act()
        except UserError as error:
            fault = error
        told = self.collect(None if fault is None else str(fault))
        if told != [None] * self.world_size:
            raise self._agreed(told) from fault
        return result  # type: ignore[return-value]

    def _agreed(self, told: list[str | None]) -> UserError:
        """The first line among the processes', with its process's number unless all say the same."""
        if not self.is_main:
            return ToldElsewhere("the main process says why")
        rank, line = next((rank, line) for rank, line in enumerate(told) if line is not None)
        return UserError(line if len(set(told)) == 1 else f"process {rank}: {line}")
