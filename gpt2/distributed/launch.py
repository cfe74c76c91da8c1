"""Joining the processes that torchrun started, and this one's device and mesh among them.

torchrun says in the environment who is who (RANK, LOCAL_RANK, WORLD_SIZE), how often this machine's part of the group
was started anew (TORCHELASTIC_RESTART_COUNT) and of which job it is (TORCHELASTIC_RUN_ID). Whatever else starts
processes may set the same.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt2.distributed.meet import name_of_start
from gpt2.distributed.mesh import MeshSizes, make_mesh
from gpt2.distributed.ranks import ALONE, Ranks, Together
from gpt2.errors import UserError
from gpt2.runtime import Runtime

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Place:
    """Where this process trains: its device, its peers, and their mesh (None alone)."""

    device: str
    ranks: Ranks = ALONE
    mesh: DeviceMesh | None = None


@contextmanager
def joined(world_size: int | None = None) -> Iterator[Ranks]:
    """The process group of `world_size` processes (by the environment), left again at the end if it was begun here.

    Yields ranks for agreeing before there is a mesh. One process has no group: nothing is loaded for it.
    """
    size = int(os.environ.get("WORLD_SIZE", 1)) if world_size is None else world_size
    if size == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        raise UserError(f"{size} processes were started, but this build of torch has no torch.distributed: start one")
    begun = not dist.is_initialized()
    if begun:
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        store, rank, _ = next(rendezvous("env://"))
        own = PrefixStore(name_of_start(store, rank, size), store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=own, rank=rank, world_size=size)
        quieten()
    try:
        yield Together(dist.get_rank(), local_rank(), size, dist.get_rank(), size)
    finally:
        if begun:
            dist.destroy_process_group()


def take_place(runtime: Runtime, sizes: MeshSizes) -> Place:
    """This process's device and mesh; all processes call it together, inside `joined`.

    A GPU multiplies float32 as TF32 from then on (10 bits of mantissa, sums in float32): several times as fast.
    """
    if runtime.device.startswith("cuda"):
        import torch

        torch.set_float32_matmul_precision("high")
    if sizes.world_size == 1:
        if runtime.device.startswith("cuda:"):
            import torch

            torch.cuda.set_device(runtime.device)  # what is not told a device takes the current one
        return Place(runtime.device)
    device = own_device(runtime)
    mesh = make_mesh(sizes, device.partition(":")[0])
    rank = runtime.rank
    ranks = Together(rank, runtime.local_rank, sizes.world_size, sizes.data_rank(rank), sizes.data_size)
    return Place(device, ranks, mesh)


def own_device(runtime: Runtime) -> str:
    """Each process of a machine has a GPU of its own, by its local rank; on processors they share the cores."""
    if runtime.device == "cpu":
        return "cpu"
    if runtime.device != "cuda":
        raise UserError(
            f"--device {runtime.device}: several processes train on cuda or cpu; each cuda process gets its own"
        )
    import torch

    if runtime.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {runtime.local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}; "
            "start as many with --nproc-per-node, or use --device cpu"
        )
    torch.cuda.set_device(runtime.local_rank)
    return f"cuda:{runtime.local_rank}"


def quieten() -> None:
    """On a processor DTensor says in every process that gloo lacks all-to-all and that it takes another way."""
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def restarted(peers: Ranks) -> bool:
    """Whether torchrun has started processes anew after one of them failed; each machine knows only of its own."""
    return peers.any(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0)


def job() -> str:
    """What names the job that torchrun was started for (its --rdzv-id); empty where nothing does.

    A machine that takes the place of another has the same one, and has restarted nothing.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return "" if name == "none" else name


def lost_peer(error: RuntimeError) -> bool:
    """Whether this is how a process learns that another one has gone: the connection to it broke, or it never came."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or any(library in str(error) for library in ("gloo", "NCCL"))
