"""Joining processes: those that torchrun starts anew meet each other and not the dead."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from gpt2.distributed.launch import joined, restarted, take_place
from gpt2.distributed.meet import name_of_start
from gpt2.distributed.mesh import MeshSizes
from gpt2.errors import UserError
from gpt2.runtime import Runtime

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the processes are forked")


def group(port: int, restarts: tuple[int, int]) -> list[int]:
    """Exit statuses of two processes that meet in a store that a third keeps, as torchrun's workers do.

    Each says how often its machine was started anew.
    """
    pids = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            names = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            names |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": restarts[rank]}
            os.environ.update({name: str(value) for name, value in names.items()})
            code = 1
            try:
                time.sleep(0.3 * rank)  # the first to come must not take the address that the dead second one left
                with joined() as ranks:
                    code = 0 if ranks.collect(rank) == [0, 1] and restarted(ranks) == any(restarts) else 2
            finally:
                os._exit(code)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def test_a_group_that_is_started_anew_does_not_look_for_the_dead_one() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    counts = [(0, 0), (1, 1), (1, 2), (0, 2), (2, 0), (2, 0)]  # machines are replaced, and count for themselves
    assert [group(store.port, restarts) for restarts in counts] == [[0, 0]] * 6


def test_who_has_died_while_asking_is_not_taken_for_the_one_that_asks_now() -> None:
    store = dist.HashStore()
    with pytest.raises(UserError, match="process 1 has waited in vain for the first one"):
        name_of_start(store, 1, 2, patience=0.01)  # its question stays behind
    with ThreadPoolExecutor(3) as pool:
        first, *others = (pool.submit(name_of_start, store, rank, 3, 30.0) for rank in range(3))
        names = {first.result(), *(other.result() for other in others)}
        again = {one.result() for one in [pool.submit(name_of_start, store, rank, 3, 30.0) for rank in range(3)]}
    assert len(names) == len(again) == 1 and names != again


def test_who_does_not_come_is_named() -> None:
    with pytest.raises(UserError, match="of 4 processes these have not come: 1, 2, 3; start them all"):
        name_of_start(dist.HashStore(), 0, 4, patience=0.01)


def test_a_gpu_multiplies_float32_as_tf32_and_a_processor_does_not() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        take_place(Runtime("cpu"), MeshSizes())
        assert torch.get_float32_matmul_precision() == before == "highest"
        take_place(Runtime("cuda"), MeshSizes())
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
