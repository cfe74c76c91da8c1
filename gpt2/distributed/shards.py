"""What lies behind a sharded tensor: this process's part, its norm among all parts, and whole matrices for a moment.

Everything here takes plain tensors too, which are whole, and then communicates nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Layout:
    """How a tensor lies on a mesh: its whole shape, and a placement for each of the mesh's dimensions."""

    mesh: DeviceMesh
    placements: tuple[Any, ...]
    shape: torch.Size

    def wrap(self, part: Tensor) -> Tensor:
        """The sharded tensor of which `part` is this process's; it shares the part's memory."""
        from torch.distributed.tensor import DTensor

        stride = torch.empty(self.shape, device="meta").stride()
        whole: Tensor = DTensor.from_local(
            part, self.mesh, self.placements, run_check=False, shape=self.shape, stride=stride
        )
        return whole

    def stacked(self, count: int) -> Layout:
        """The layout of `count` such tensors as one, stacked along a new first dimension."""
        return Layout(self.mesh, tuple(map(one_further, self.placements)), torch.Size((count, *self.shape)))

    @property
    def copies(self) -> int:
        """How many processes hold the same part."""
        sizes = (self.mesh.size(i) for i, placement in enumerate(self.placements) if placement.is_replicate())
        return math.prod(sizes)


def layout(tensor: Tensor) -> Layout | None:
    """A sharded tensor's layout; None for a plain one."""
    mesh = getattr(tensor, "device_mesh", None)
    return None if mesh is None else Layout(mesh, tuple(tensor.placements), tensor.shape)  # type: ignore[attr-defined]


def part(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, sharing its memory; a plain tensor as it is."""
    if layout(tensor) is None:
        return tensor
    local: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return local


def one_further(placement: Any) -> Any:
    """A placement's like for tensors that have one dimension more in front."""
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    if isinstance(placement, _StridedShard):  # FSDP over tensor parallelism, both along one dimension
        return _StridedShard(placement.dim + 1, split_factor=placement.split_factor)
    return Shard(placement.dim + 1) if isinstance(placement, Shard) else placement


def global_norm(tensors: Sequence[Tensor]) -> float:
    """The norm of all elements of sharded tensors, on whatever meshes: the same number in every process.

    A part that several processes hold counts once. Sums of squares go through float64.
    """
    import torch.distributed as dist

    norms = torch.stack(torch._foreach_norm([part(tensor) for tensor in tensors])).double()
    world = dist.get_world_size()
    copies = [world // (found.mesh.size() // found.copies) if (found := layout(t)) else world for t in tensors]
    square = (norms.square() / torch.tensor(copies, device=norms.device)).sum()
    dist.all_reduce(square)
    return math.sqrt(float(square))


def by_whole_matrices(act: Callable[[Tensor], Tensor], stack: Tensor, lies: Layout | None) -> Tensor:
    """`act` on a stack (N, rows, columns) of matrices of which each process holds a part; returns this one's part.

    Each process gets some of the N matrices whole (an all-to-all), so none does another's work.
    """
    if lies is None:
        return act(stack)
    from torch.distributed.tensor import DTensor, Shard

    stacked = lies.stacked(len(stack))
    apart = [Shard(0)] * lies.mesh.ndim
    mine: Any = stacked.wrap(stack)
    mine = mine.redistribute(placements=apart)
    done = act(mine.to_local())
    back = DTensor.from_local(done, lies.mesh, apart, run_check=False, shape=mine.shape, stride=mine.stride())
    result: Tensor = back.redistribute(placements=stacked.placements).to_local()
    return result
