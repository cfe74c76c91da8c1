"""A forecast of a run, on devices that need not be here: memory, time, cost, and how to lay it out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from gpt2.distributed import estimate
from gpt2.distributed.estimate import Job, Layout, shards, shares, step_seconds, tensor_parallel, traffic, widest
from gpt2.distributed.mesh import MeshSizes, check_model, mesh_sizes
from gpt2.errors import UserError
from gpt2.hardware import GPUS
from gpt2.model import sizes
from gpt2.model.memory import RECOMPUTE, Recompute, whole
from gpt2.runtime import Runtime, pick_dtype
from gpt2.train.config import TrainConfig

HOUR, DAY = 3600, 86_400


@dataclass(frozen=True)
class Devices:
    """What the run would be on; `peak` in FLOP/s, `memory` in bytes, `price` in dollars an hour, each."""

    name: str
    kind: str  # "cpu" or "cuda"
    count: int
    memory: int
    peak: float
    price: float | None = None
    source: str = ""


def forecast(
    config: TrainConfig,
    devices: Devices,
    tokens: int,
    mfu: float,
    mesh: str | None = None,
    recompute: Recompute | None = None,
    grow: bool = False,
) -> dict[str, Any]:
    """Everything that `gpt2 plan` shows, in plain types: bytes, seconds, FLOPs, dollars.

    `mesh` is as --mesh has it; `recompute` None: the least that fits; `grow`: the batch may be made larger until it can
    be dealt out evenly.
    """
    if config.fp8:
        raise UserError(
            "--fp8: what 8-bit products gain is not known here; plan for bfloat16 (leave it out, or --no-fp8)"
        )
    job = job_of(config, devices)
    shape = asked(job, mesh, config)
    if grow:
        job = replace(job, batch_rows=shareable(job, shape))
        config = replace(config, batch_tokens=job.batch_tokens)
    levels = levels_of(config, recompute)
    proposed = estimate.propose(job, levels, config.micro_batch_size)
    if shape is not None:
        layout = on_mesh(job, shape, levels, config.micro_batch_size)
    else:
        layout = proposed or tightest(job, levels, config.micro_batch_size)
    needed = {name: job.bytes(replace(layout, recompute=name)) for name in RECOMPUTE}
    return {
        "config": asdict(config.model),
        "parameters": sizes.parameters(config.model),
        "flops_per_token": sizes.training_flops_per_token(config.model),
        "devices": asdict(devices),
        "dtype": job.dtype,
        "optimizer": job.optimizer,
        "batch_tokens": job.batch_tokens,
        **described(layout),
        "micro_steps": -(-job.rows_of(layout.mesh) // layout.rows),
        "room": job.room,
        "bytes": {name: vars(found) | {"total": found.total} for name, found in needed.items()},
        "fits": {name: found.total <= job.room for name, found in needed.items()},
        "held": counted(job, layout),
        "time": time_of(job, layout, devices, tokens, config.ramp.steps_for(tokens), mfu),
        "proposed": described(proposed) | {"reason": estimate.reason(job, proposed)} if proposed else None,
    }


def job_of(config: TrainConfig, devices: Devices) -> Job:
    """The settings as the estimate wants them."""
    known = next((gpu for gpu in GPUS if gpu.name == devices.name), None)
    if known is not None:
        dtype = ("bfloat16" if known.has_bfloat16 else "float16") if config.dtype == "auto" else config.dtype
        dtype = pick_dtype(dtype, "cuda")
    else:
        dtype = Runtime.detect(config.device, config.dtype).dtype
    return Job(
        config.model,
        devices.count,
        devices.kind,
        devices.memory,
        config.batch_rows,
        dtype,
        config.optim.optimizer,
        saving=config.async_save,
    )


def levels_of(config: TrainConfig, recompute: Recompute | None) -> list[Recompute]:
    """The levels of recomputation to choose from, the least first."""
    if recompute is not None:
        return [recompute]
    return list(RECOMPUTE) if config.recompute == "none" else [config.recompute]


def asked(job: Job, mesh: str | None, config: TrainConfig) -> MeshSizes | None:
    """The mesh that --mesh or the settings name; None if they leave it to us."""
    if mesh is not None:
        given = parse_mesh(mesh)
    elif (config.dp_replicate, config.dp_shard, config.tp) != (1, None, 1):
        given = (config.dp_replicate, config.dp_shard, config.tp)
    else:
        return None
    shape = mesh_sizes(job.devices, *given)
    check_model(shape, job.model)
    return shape


def shareable(job: Job, shape: MeshSizes | None) -> int:
    """The batch's rows, or so many more that the processes which read rows can have equal shares."""
    readers = [shape.data_size] if shape else [job.devices // tp for tp in tensor_parallel(job)]
    if any(job.batch_rows % count == 0 for count in readers):
        return job.batch_rows
    return -(-job.batch_rows // min(readers)) * min(readers)


def on_mesh(job: Job, shape: MeshSizes, levels: list[Recompute], rows: int | None) -> Layout:
    """The mesh with the least recomputation that fits and the most rows; if none fits, what holds least."""
    if job.rows_of(shape) == 0:
        raise uneven(job, shape.data_size)
    found = (widest(job, shape, level, rows) for level in levels)
    return next(filter(None, found), None) or Layout(shape, min(rows or 1, job.rows_of(shape)), levels[-1])


def uneven(job: Job, readers: int) -> UserError:
    """That a batch cannot be dealt out."""
    return UserError(
        f"a batch of {job.batch_rows:,} rows cannot be shared evenly by {readers:,} processes; change --batch_tokens "
        f"({-(-job.batch_rows // readers) * readers * job.model.context_length:,} would do), --gpus or --mesh"
    )


def parse_mesh(text: str) -> tuple[int, int | None, int]:
    """ "1x128x8" -> its three numbers."""
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise UserError(f"--mesh {text}: three numbers with x between them, dp_replicate x dp_shard x tp, as 1x128x8")
    return int(parts[0]), int(parts[1]), int(parts[2])


def tightest(job: Job, levels: list[Recompute], rows: int | None) -> Layout:
    """What holds least in one process, for a report that says by how much it does not fit."""
    for tp in reversed(tensor_parallel(job)):
        mesh = MeshSizes(1, job.devices // tp, tp)
        if job.rows_of(mesh):
            return Layout(mesh, min(rows or 1, job.rows_of(mesh)), levels[-1])
    raise uneven(job, job.devices // tensor_parallel(job)[-1])


def described(layout: Layout) -> dict[str, Any]:
    """A layout as the settings of gpt2 train that make it."""
    return {**vars(layout.mesh), "micro_batch_size": layout.rows, "recompute": layout.recompute}


def counted(job: Job, layout: Layout) -> dict[str, Any]:
    """Parameters that the fullest process holds: computed, and on a mesh counted on the sharded model itself."""
    if layout.mesh.world_size == 1:
        return {"computed": whole(job.model).all, "counted": None}
    return {"computed": shares(job.model, layout.mesh).all, "counted": shards(job.model, layout.mesh).all}


def time_of(job: Job, layout: Layout, devices: Devices, tokens: int, steps: int, mfu: float) -> dict[str, Any]:
    """Seconds, days, dollars; and how fast the network must be so that it does not add to the time."""
    step = step_seconds(job, devices.peak, mfu)
    seconds = tokens / job.batch_tokens * step  # of a growing batch the first steps are shorter
    hours = seconds * devices.count / HOUR
    sent = traffic(job, layout)
    return {
        "tokens": tokens,
        "steps": steps,
        "flops": tokens * sizes.training_flops_per_token(job.model),
        "mfu": mfu,
        "step_seconds": step,
        "tokens_per_second": job.batch_tokens / step,
        "days": seconds / DAY,
        "device_hours": hours,
        "cost": None if devices.price is None else hours * devices.price,
        "sent_bytes_per_step": sent,
        "bandwidth_needed": sent / step,
    }
