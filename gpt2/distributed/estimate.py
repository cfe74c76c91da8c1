"""What a mesh would hold, take and cost, without its hardware.

`shares` computes what the first process holds; `shards` builds the model on the meta device, lays it out under a fake
process group as training would, and counts. They agree (tests/distributed/test_estimate.py), so a search may use the
first, and a plan checks its choice with the second.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from gpt2.distributed.mesh import MeshSizes
from gpt2.model.config import GPTConfig
from gpt2.model.memory import RECOMPUTE, Held, Pass, Recompute, TrainingBytes, most_rows, root_numbers, training_bytes
from gpt2.model.sizes import training_flops_per_token

ROOM = 0.92  # of a GPU's memory: the allocator leaves gaps
MOST_TP = 8  # processes of one machine: beyond its links tensor parallelism is slow


@dataclass(frozen=True)
class Layout:
    """How a run is laid out: the mesh, rows at a time, and what is computed again."""

    mesh: MeshSizes
    rows: int
    recompute: Recompute


@dataclass(frozen=True)
class Job:
    """What is to be trained, on how many of which devices; `batch_rows` rows make one optimizer step."""

    model: GPTConfig
    devices: int
    device: str  # "cpu" or "cuda"
    memory: int  # bytes of a device
    batch_rows: int
    dtype: str = "bfloat16"
    optimizer: str = "adamw"
    saving: bool = False

    @property
    def room(self) -> int:
        """Bytes that a process may count on."""
        return int(self.memory * ROOM)

    @property
    def batch_tokens(self) -> int:
        return self.batch_rows * self.model.context_length

    def bytes(self, layout: Layout) -> TrainingBytes:
        """The peak of the process that holds most."""
        mesh = layout.mesh
        micro_steps = -(-self.rows_of(mesh) // layout.rows)
        step = Pass(
            layout.rows, 0, self.dtype, self.device, layout.recompute, mesh.tp, micro_steps, mesh.world_size > 1
        )
        held = shares(self.model, mesh) if mesh.world_size > 1 else None
        return training_bytes(self.model, step, self.optimizer, held, self.saving)

    def fits(self, layout: Layout) -> bool:
        return self.bytes(layout).total <= self.room

    def rows_of(self, mesh: MeshSizes) -> int:
        """Rows of a step that one process reads; 0 where the batch cannot be dealt out evenly."""
        return 0 if self.batch_rows % mesh.data_size else self.batch_rows // mesh.data_size


@functools.cache
def shares(config: GPTConfig, mesh: MeshSizes) -> Held:
    """What rank 0, which has the largest part of everything, holds of the parameters."""
    tp, shard = mesh.tp, mesh.dp_shard
    c, a, f = config.n_embd, config.attention_width // tp, config.n_inner // tp
    bias, norm = int(config.bias), 2 if config.bias else 1

    def part(rows: int) -> int:
        return -(-rows // shard)

    matrices = 3 * part(a) * c + part(c) * a + part(f) * c + part(c) * f
    vectors = bias * (3 * part(a) + part(c) + part(f) + part(c)) + 2 * norm * part(c)
    tables = part(config.padded_vocab_size) * (c * (1 if config.tie_head else 2) + int(config.head_bias))
    root = tables + part(config.context_length) * c + norm * part(c)
    return Held(
        hidden=config.n_layer * matrices,
        other=config.n_layer * vectors + root,
        block=4 * a * c + 2 * f * c + bias * (3 * a + f + 2 * c) + 2 * norm * c,
        root=root_numbers(config),
        sharded=shard > 1,
    )


def shards(config: GPTConfig, mesh: MeshSizes) -> Held:
    """The same, counted on the model itself: sharded as in training, on the meta device under a fake process group."""
    import torch

    from gpt2.distributed.mesh import make_mesh
    from gpt2.distributed.parallelize import parallelize
    from gpt2.distributed.shards import part
    from gpt2.model.gpt import GPT

    with fake_processes(mesh.world_size):
        with torch.device("meta"):
            model = GPT(config)
        parallelize(model, make_mesh(mesh, "cpu"), torch.bfloat16)
        sizes = {name: part(parameter).numel() for name, parameter in model.named_parameters()}
        matrices = {name for name, p in model.named_parameters() if name.startswith("h.") and p.dim() > 1}
        hidden = sum(sizes[name] for name in matrices)
        expected = shares(config, mesh)
        return replace(expected, hidden=hidden, other=sum(sizes.values()) - hidden)


@contextmanager
def fake_processes(count: int) -> Iterator[None]:
    """A process group of `count` of which this process is the first and the others are not there."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield
    finally:
        dist.destroy_process_group()


def widest(job: Job, mesh: MeshSizes, recompute: Recompute, rows: int | None = None) -> Layout | None:
    """The layout with the most rows at a time (or with `rows`) that fits; None if none does."""
    share = job.rows_of(mesh)
    if rows is None:
        rows = most_rows(lambda rows: job.fits(Layout(mesh, rows, recompute)), share)
        rows = max((d for d in divisors(share) if d <= rows), default=0)  # micro-steps of one size
    layout = Layout(mesh, min(rows, share), recompute)
    return layout if layout.rows and job.fits(layout) else None


def propose(job: Job, levels: Sequence[Recompute] = RECOMPUTE, rows: int | None = None) -> Layout | None:
    """The least tensor parallelism that fits, then the least recomputation of `levels`, then the least sharding; the
    rest of the devices hold copies. None if nothing fits.
    """
    for tp in tensor_parallel(job):
        for level in levels:
            for shard in divisors(job.devices // tp):
                mesh = MeshSizes(job.devices // tp // shard, shard, tp)
                found = widest(job, mesh, level, rows)
                if found is not None:
                    return found
    return None


def tensor_parallel(job: Job) -> list[int]:
    """Sizes of tensor parallelism that the model and the devices allow."""
    model = job.model
    return [tp for tp in divisors(job.devices) if tp <= MOST_TP and model.n_head % tp == 0 == model.n_inner % tp]


def reason(job: Job, chosen: Layout) -> str:
    """Why nothing less than the proposal does, in a line."""
    mesh = chosen.mesh
    parts = []
    for tp in [tp for tp in tensor_parallel(job) if tp < mesh.tp][-1:]:
        smaller = MeshSizes(1, job.devices // tp, tp)
        parts.append(f"tp {tp} {_obstacle(job, Layout(smaller, 1, 'full'))}")
    for level in RECOMPUTE[: RECOMPUTE.index(chosen.recompute)][-1:]:
        smaller = MeshSizes(1, job.devices // mesh.tp, mesh.tp)
        parts.append(f"recompute {level} {_obstacle(job, Layout(smaller, 1, level))}")
    for shard in [d for d in divisors(job.devices // mesh.tp) if d < mesh.dp_shard][-1:]:
        smaller = MeshSizes(job.devices // mesh.tp // shard, shard, mesh.tp)
        parts.append(f"dp_shard {shard} {_obstacle(job, Layout(smaller, 1, chosen.recompute))}")
    return "; ".join(parts) or "the whole model fits a device"


def _obstacle(job: Job, layout: Layout) -> str:
    if job.rows_of(layout.mesh) == 0:
        return f"leaves {layout.mesh.data_size:,} processes that cannot share {job.batch_rows:,} rows evenly"
    needed = job.bytes(layout).total
    return f"needs {needed / 1e9:,.1f} GB at least" if needed > job.room else "does not fit the rows asked for"


def divisors(number: int) -> list[int]:
    """From 1 upwards; 0 has none."""
    return [d for d in range(1, number + 1) if number % d == 0]


def step_seconds(job: Job, peak: float, mfu: float) -> float:
    """Time of an optimizer step at a share `mfu` of all devices' peak FLOP/s."""
    return training_flops_per_token(job.model) * job.batch_tokens / (job.devices * peak * mfu)


def traffic(job: Job, layout: Layout) -> int:
    """Bytes that a process sends in one optimizer step, rings assumed: gathers and sums of the data's processes for
    each micro-step, sums among the copies once, and four sums a block of tensor parallelism.
    """
    mesh, size = layout.mesh, 2 if job.dtype != "float32" else 4
    steps = -(-job.rows_of(mesh) // layout.rows)
    seen = job.model.n_layer * shares(job.model, mesh).block + root_numbers(job.model)
    local = shares(job.model, mesh).all
    gathers = (2 * size + 4) * seen * (mesh.dp_shard - 1) // mesh.dp_shard * steps
    copies = 2 * 4 * local * (mesh.dp_replicate - 1) // mesh.dp_replicate
    tokens = job.rows_of(mesh) * job.model.context_length
    sums = 4 * 2 * job.model.n_layer * tokens * job.model.n_embd * size * (mesh.tp - 1) // mesh.tp
    return int(gathers + copies + sums)
