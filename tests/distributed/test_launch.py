"""Joining processes: those that torchrun starts anew meet each other and not the dead."""

from __future__ import annotations

import os
import sys
import time

import pytest
import torch
import torch.distributed as dist

from gpt2.distributed.launch import joined, take_place
from gpt2.distributed.mesh import MeshSizes
from gpt2.runtime import Runtime

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the processes are forked")


def group(port: int, restarts: int) -> list[int]:
    """Exit statuses of two processes that meet in a store that a third keeps, as torchrun's workers do."""
    pids = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            names = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            names |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": restarts}
            os.environ.update({name: str(value) for name, value in names.items()})
            code = 1
            try:
                time.sleep(0.3 * rank)  # the first to come must not take the address that the dead second one left
                with joined() as ranks:
                    code = 0 if ranks.collect(rank) == [0, 1] else 2
            finally:
                os._exit(code)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def test_a_group_that_is_started_anew_does_not_look_for_the_dead_one() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert [group(store.port, restarts) for restarts in range(6)] == [[0, 0]] * 6


def test_a_gpu_multiplies_float32_as_tf32_and_a_processor_does_not() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        take_place(Runtime("cpu"), MeshSizes())
        assert torch.get_float32_matmul_precision() == before == "highest"
        take_place(Runtime("cuda"), MeshSizes())
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
