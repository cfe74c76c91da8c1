"""How the processes of one start find each other in a store that has seen others before.

torchrun's store outlives a restart, and how often it has restarted (TORCHELASTIC_RESTART_COUNT) each machine counts for
itself: once a machine was replaced, or another one's process failed, the counts differ. So the first process makes up a
name for this start and hands it to all who ask now; behind the name, as a prefix, nothing of the dead is found.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

from gpt2.errors import UserError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

PAUSE = 0.05  # seconds between two looks
PATIENCE = 1800.0  # seconds for all to come: torch's own


def name_of_start(store: Store, rank: int, size: int, patience: float = PATIENCE) -> str:
    """The same in the `size` processes that call it now, and in no others. UserError if some do not come."""
    until = time.monotonic() + patience
    return hand_out(store, size, until) if rank == 0 else ask(store, rank, until)


def ask(store: Store, rank: int, until: float) -> str:
    """The first process's name. Asked again and again: it may just have answered one that is dead."""
    mine = uuid.uuid4().hex
    while not store.check([f"gpt2.answer.{mine}"]):
        if time.monotonic() > until:
            raise UserError(f"process {rank} has waited in vain for the first one; is it running, and does it see it?")
        store.set(f"gpt2.question.{rank}", mine)
        time.sleep(PAUSE)
    name = store.get(f"gpt2.answer.{mine}").decode()
    store.set(f"gpt2.here.{name}.{rank}", "")
    return name


def hand_out(store: Store, size: int, until: float) -> str:
    """A new name, once all others have it."""
    name, missing = uuid.uuid4().hex, list(range(1, size))
    while missing := [rank for rank in missing if not store.check([f"gpt2.here.{name}.{rank}"])]:
        if time.monotonic() > until:
            raise UserError(f"of {size} processes these have not come: {', '.join(map(str, missing))}; start them all")
        for rank in missing:
            if store.check([f"gpt2.question.{rank}"]):
                asked = store.get(f"gpt2.question.{rank}").decode()
                store.set(f"gpt2.answer.{asked}", name)
        time.sleep(PAUSE)
    return name
