"""A checkpoint of four processes: read whole by one, resharded by two, and errors are told to all."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from gpt2.checkpoint import sharded
from gpt2.checkpoint.pieces import pieces, snapshot
from gpt2.checkpoint.together import new_group
from gpt2.checkpoint.train_state import STATE, WEIGHTS, Step, damage, save_step, step_name, steps

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the processes are forked, which spares their start")

WHOLE = {
    f"{WEIGHTS}even": torch.arange(32.0).view(8, 4),
    f"{WEIGHTS}uneven": torch.arange(35.0).view(7, 5),
    f"{WEIGHTS}short": torch.arange(3.0).view(1, 3),  # fewer rows than processes
    "optimizer.vector": torch.arange(5.0),
    "optimizer.step": torch.tensor(7.0),
}


def in_processes(count: int, work: Callable[[int], Any], place: Path) -> list[Any]:
    """`work(rank)` in so many processes that know each other; what each returns, or its error as text."""
    context = multiprocessing.get_context("fork")
    answers: Any = context.SimpleQueue()

    def run(rank: int) -> None:
        try:
            dist.init_process_group("gloo", f"file://{place}/meet{count}", rank=rank, world_size=count)
            answers.put((rank, work(rank)))
        except BaseException as error:
            answers.put((rank, f"{type(error).__name__}: {error}"))
        os._exit(0)

    started = [context.Process(target=run, args=(rank,)) for rank in range(count)]
    for process in started:
        process.start()
    found = dict(answers.get() for _ in started)
    for process in started:
        process.join()
    return [found[rank] for rank in range(count)]


def spread(shape: tuple[int, ...], names: tuple[str, ...], dims: tuple[int, ...]) -> dict[str, Tensor]:
    """The tensors over a mesh whose last dimension shards `dims` in turn; what has no dimension stays plain."""
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    tensors = {}
    for number, (name, tensor) in enumerate(WHOLE.items()):
        if tensor.dim() == 0:
            tensors[name] = tensor.clone()
            continue
        shard = Shard(min(dims[number % len(dims)], tensor.dim() - 1))
        placements = [Replicate()] * (len(shape) - 1) + [shard]
        tensors[name] = distribute_tensor(tensor, mesh, placements)
    return tensors


def write_model(folder: Path, weights: Mapping[str, Tensor]) -> None:
    (folder / "config.json").write_text("{}")
    torch.save(dict(weights), folder / "model.pt")


def save_over_four(run: Path, number: int, fail: bool = False) -> Callable[[int], Any]:
    def work(rank: int) -> str:
        group = new_group()
        tensors = spread((2, 2), ("dp_replicate", "dp_shard"), (0, 1))
        tensors[f"rng.{rank}.torch"] = torch.full((3,), rank, dtype=torch.uint8)
        if fail and rank == 2:
            sharded.Writer.write_data = refuse  # type: ignore[method-assign]
        return save_step(run, Step(number, {"n": number}, snapshot(pieces(tensors)), write_model), group).name

    return work


def refuse(*anything: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    assert in_processes(4, save_over_four(folder, 5), folder) == [step_name(5)] * 4
    return folder


def test_one_process_reads_what_four_wrote(run: Path) -> None:
    step = run / step_name(5)
    assert damage(step) is None
    back = sharded.load_whole(step / STATE)
    assert all(torch.equal(back[name], tensor) for name, tensor in WHOLE.items())
    assert [back[f"rng.{rank}.torch"].tolist() for rank in range(4)] == [[rank] * 3 for rank in range(4)]
    model = torch.load(step / "model.pt", weights_only=True)
    assert torch.equal(model["uneven"], WHOLE[f"{WEIGHTS}uneven"])


def test_nothing_is_written_twice(run: Path) -> None:
    shards = list((run / step_name(5) / STATE).glob("*.distcp"))
    assert len(shards) > 1
    with_overhead = sum(path.stat().st_size for path in shards)
    assert with_overhead < 14 * 2000, "more than one small file for each piece"


def test_two_processes_read_what_four_wrote(run: Path, tmp_path: Path) -> None:
    def work(rank: int) -> bool:
        wanted = spread((2,), ("dp_shard",), (1, 0))
        local = {name: t.to_local() if hasattr(t, "to_local") else t for name, t in wanted.items()}
        before = {name: tensor.clone() for name, tensor in local.items()}
        for tensor in local.values():
            tensor.zero_()
        sharded.load(wanted, run / step_name(5) / STATE)
        return all(torch.equal(before[name], local[name]) for name in WHOLE)

    assert in_processes(2, work, tmp_path) == [True, True]


def test_a_disk_that_is_full_for_one_is_told_to_all_and_leaves_nothing(run: Path, tmp_path: Path) -> None:
    told = in_processes(4, save_over_four(run, 10, fail=True), tmp_path)
    assert told == ["OSError: [Errno 28] No space left on device"] * 4
    assert [path.name for path in steps(run)] == [step_name(5)]
    assert not list(run.glob(".step_*"))
