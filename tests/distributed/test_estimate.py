"""What a mesh would hold and cost, without it."""

from __future__ import annotations

from typing import Any

import pytest

from gpt2.distributed.estimate import (
    Job,
    Layout,
    divisors,
    propose,
    reason,
    shards,
    shares,
    step_seconds,
    traffic,
    widest,
)
from gpt2.distributed.mesh import MeshSizes
from gpt2.model.config import GPTConfig
from gpt2.model.presets import PRESETS

ODD = GPTConfig(n_layer=2, n_head=4, n_embd=36, head_dim=10, n_inner=52, vocab_size=101, context_length=13)


@pytest.mark.parametrize("sizes", [(1, 1, 2), (2, 3, 2), (1, 7, 4), (3, 1, 1), (1, 64, 1), (1, 2, 1)])
@pytest.mark.parametrize(
    "config", [ODD, GPTConfig(**(vars(ODD) | {"bias": False, "tie_head": False, "head_bias": True}))]
)
def test_the_arithmetic_counts_what_the_sharded_model_holds(config: GPTConfig, sizes: tuple[int, int, int]) -> None:
    mesh = MeshSizes(*sizes)
    assert shares(config, mesh) == shards(config, mesh)


def test_a_published_size_on_a_published_number_of_processes() -> None:
    mesh = MeshSizes(1, 8, 4)
    assert shares(PRESETS["gpt3-xl"], mesh) == shards(PRESETS["gpt3-xl"], mesh)


def job(name: str, devices: int, memory: float = 80e9, **changes: Any) -> Job:
    return Job(**({"model": PRESETS[name], "devices": devices, "device": "cuda", "memory": int(memory),
                   "batch_rows": 512} | changes))  # type: ignore[arg-type]  # fmt: skip


def test_a_model_that_fits_a_device_is_copied_not_shared() -> None:
    small = job("gpt2-124m", 8)
    found = propose(small)
    assert found == Layout(MeshSizes(8, 1, 1), 64, "none")
    assert reason(small, found) == "the whole model fits a device"


def test_a_larger_one_is_shared_before_its_layers_are_cut() -> None:
    large = job("gpt3-13b", 64)
    found = propose(large)
    assert found is not None and found.mesh.tp == 1 and found.mesh.dp_shard > 1 and large.fits(found)
    assert not large.fits(Layout(MeshSizes(64 * 2 // found.mesh.dp_shard, found.mesh.dp_shard // 2, 1), 1, "none"))
    assert "GB at least" in reason(large, found)


def test_more_processes_than_rows_need_tensor_parallelism() -> None:
    found = propose(job("gpt3-6.7b", 64, batch_rows=16))
    assert found is not None and found.mesh.tp == 4
    assert "cannot share 16 rows" in reason(job("gpt3-6.7b", 64, batch_rows=16), found)


def test_recomputation_comes_before_more_tensor_parallelism() -> None:
    found = propose(job("gpt2-1558m", 1, 44e9), rows=8)
    assert found is not None and found.recompute != "none" and found.mesh == MeshSizes()


def test_what_fits_nowhere_is_not_proposed() -> None:
    assert propose(job("gpt3-175b", 8)) is None
    assert widest(job("gpt3-175b", 8), MeshSizes(1, 8, 1), "full") is None


def test_rows_divide_a_processs_share() -> None:
    for memory in (24e9, 40e9, 80e9):
        found = widest(job("gpt2-774m", 4, memory, batch_rows=120), MeshSizes(4, 1, 1), "none")
        assert found is not None and 30 % found.rows == 0


def test_time_is_work_over_speed() -> None:
    one, eight = job("gpt2-124m", 1), job("gpt2-124m", 8)
    assert step_seconds(one, 989e12, 0.4) == pytest.approx(8 * step_seconds(eight, 989e12, 0.4))
    # 6 x 124M and attention's half, times 512 x 1,024 tokens, at 0.4 x 989 TFLOP/s
    assert step_seconds(one, 989e12, 0.4) == pytest.approx(512 * 1024 * 8.0e8 / (0.4 * 989e12), rel=0.02)


def test_traffic_is_none_alone_and_rings_sums_among_copies() -> None:
    assert traffic(job("gpt2-124m", 1), Layout(MeshSizes(), 8, "none")) == 0
    copies = traffic(job("gpt2-124m", 2), Layout(MeshSizes(2, 1, 1), 8, "none"))
    assert copies == 4 * shares(PRESETS["gpt2-124m"], MeshSizes(2, 1, 1)).all
    shared = job("gpt2-124m", 2)
    few, many = (traffic(shared, Layout(MeshSizes(1, 2, 1), rows, "none")) for rows in (256, 64))
    assert many == 4 * few  # gathered anew for each micro-step


def test_divisors() -> None:
    assert divisors(12) == [1, 2, 3, 4, 6, 12] and divisors(0) == []
