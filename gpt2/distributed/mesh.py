"""How processes are laid out: dp_replicate x dp_shard x tp, the last side by side (one machine's fast links)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt2.errors import UserError
from gpt2.model.config import GPTConfig

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

DIMENSIONS = ("dp_replicate", "dp_shard", "tp")
DATA = ("dp_replicate", "dp_shard")  # processes that differ in these read different rows


@dataclass(frozen=True)
class MeshSizes:
    """`dp_replicate` groups hold the model each; in a group `dp_shard` share it, and `tp` each layer's heads."""

    dp_replicate: int = 1
    dp_shard: int = 1
    tp: int = 1

    @property
    def data_size(self) -> int:
        """Groups that read different rows."""
        return self.dp_replicate * self.dp_shard

    @property
    def world_size(self) -> int:
        return self.data_size * self.tp

    def data_rank(self, rank: int) -> int:
        """Which of these groups a process is in."""
        return rank // self.tp


def mesh_sizes(world_size: int, dp_replicate: int = 1, dp_shard: int | None = None, tp: int = 1) -> MeshSizes:
    """The mesh of `world_size` processes; `dp_shard` takes what is left over unless it is named."""
    for name, value in (("dp_replicate", dp_replicate), ("dp_shard", dp_shard), ("tp", tp)):
        if value is not None and value < 1:
            raise UserError(f"{name} = {value}: must be at least 1")
    given = f"dp_replicate {dp_replicate} x tp {tp}" if dp_shard is None else ""
    sizes = MeshSizes(dp_replicate, dp_shard or max(1, world_size // (dp_replicate * tp)), tp)
    if sizes.world_size != world_size:
        given = given or f"dp_replicate {dp_replicate} x dp_shard {dp_shard} x tp {tp} = {sizes.world_size}"
        raise UserError(
            f"{world_size} process{'es' * (world_size > 1)} cannot form a mesh of {given}; "
            "start another number with torchrun, or change --dp_replicate, --dp_shard or --tp"
        )
    return sizes


def check_model(sizes: MeshSizes, model: GPTConfig) -> None:
    """Tensor parallelism deals out whole heads and equal shares of the MLP's columns."""
    for name, value in (("n_head", model.n_head), ("n_inner", model.n_inner)):
        if value % sizes.tp:
            raise UserError(f"--tp {sizes.tp} does not divide {name} = {value}; choose a divisor of it")


def make_mesh(sizes: MeshSizes, device_type: str) -> DeviceMesh:
    """The mesh over all processes of the default group, which must be up (a fake one will do)."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device_type, (sizes.dp_replicate, sizes.dp_shard, sizes.tp), mesh_dim_names=DIMENSIONS)
