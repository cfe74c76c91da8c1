"""This process among those that train together: what they must agree on in every step goes through here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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


ALONE = Ranks()
