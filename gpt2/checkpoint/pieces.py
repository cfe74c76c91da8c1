"""What a process holds of each tensor, and where that lies in the whole: all that saving and loading need to know.

A plain tensor is one piece, the whole of it; a DTensor's piece is this process's shard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata


@dataclass(frozen=True)
class Piece:
    """A block of a tensor of `shape`, beginning at `offsets`. Two processes may hold the same one."""

    local: Tensor
    shape: torch.Size
    offsets: torch.Size

    @property
    def whole(self) -> bool:
        return self.local.shape == self.shape

    def chunk(self) -> ChunkStorageMetadata:
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

        return ChunkStorageMetadata(offsets=self.offsets, sizes=self.local.shape)

    def __create_write_items__(self, name: str, piece: Any) -> list[Any]:
        """What torch.distributed.checkpoint asks of anything that it is to save."""
        from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
        from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

        properties = TensorProperties(dtype=self.local.dtype)
        data = TensorWriteData(chunk=self.chunk(), properties=properties, size=self.shape)
        return [WriteItem(MetadataIndex(name, self.offsets), WriteItemType.SHARD, tensor_data=data)]


Pieces = dict[str, Piece]


def pieces(tensors: Mapping[str, Tensor]) -> Pieces:
    """This process's piece of each tensor, sharing its memory; shards without an element are left out."""
    found = {name: piece(tensor.detach()) for name, tensor in tensors.items()}
    return {name: piece for name, piece in found.items() if piece.local.numel() or piece.whole}


def piece(tensor: Tensor) -> Piece:
    if not hasattr(tensor, "device_mesh"):
        return Piece(tensor, tensor.shape, torch.Size([0] * tensor.dim()))
    chunk = tensor.__create_chunk_list__()[0]  # type: ignore[attr-defined]  # of a DTensor, which knows its place
    return Piece(tensor.to_local(), tensor.shape, torch.Size(chunk.offsets))  # type: ignore[attr-defined]


def snapshot(live: Pieces, before: Pieces | None = None) -> Pieces:
    """Copies in host memory, so that training may go on while they are written.

    `before` is an earlier snapshot of the same pieces that nobody reads any more: its memory is used again.
    """
    copies = {name: copied(piece, (before or {}).get(name)) for name, piece in live.items()}
    for device in {piece.local.device for piece in live.values() if piece.local.is_cuda}:
        torch.cuda.synchronize(device)  # of the pieces, which need not be the current one
    return copies


def copied(piece: Piece, before: Piece | None) -> Piece:
    """One piece's copy; from a GPU without waiting for it, into pinned memory."""
    local = piece.local
    room = before.local if before else None
    if room is None or (room.shape, room.dtype) != (local.shape, local.dtype):  # states of dice are texts of any length
        room = torch.empty_like(local, device="cpu", pin_memory=local.is_cuda)
    return replace(piece, local=room.copy_(local, non_blocking=local.is_cuda))
