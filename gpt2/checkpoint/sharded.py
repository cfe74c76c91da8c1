"""A table of tensors in a folder, written by one process or many and read by any other number of them.

The form is that of torch.distributed.checkpoint: `.metadata` (what there is and where) and one `__<rank>_0.distcp`
for each process. Its readers unpickle `.metadata`, which may run whatever a stranger put there; ours knows the few
classes that belong in it and refuses everything else. Tensors are loaded with `weights_only`.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from gpt2.checkpoint.pieces import Pieces, pieces
from gpt2.checkpoint.together import Group, rank_in, together
from gpt2.errors import UserError

METADATA = ".metadata"
CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
}


def save(mine: Pieces, folder: Path, group: Group = None) -> None:
    """Write this process's pieces; all processes of the group call it, and an error in one is raised in all.

    A piece that several hold is written once. Raises OSError if a file could not be written.
    """
    rank = rank_in(group)
    planner, writer = SavePlanner(flatten_state_dict=False), Writer(folder, single_file_per_rank=True)
    planner.set_up_planner(dict(mine), None, rank == 0)
    writer.set_up_storage_writer(rank == 0)
    plans = together(group, lambda: writer.prepare_local_plan(planner.create_local_plan()))
    plans, metadata = planner.create_global_plan(plans)  # each process comes to the same
    plan = writer.prepare_global_plan(plans)[rank]
    with without_crc():
        results = together(group, lambda: writer.write_data(planner.finish_plan(plan), planner).wait())
    together(group, lambda: writer.finish(metadata, results) if rank == 0 else None)


def load(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Read into these tensors (this process's shards, where they are sharded) in place.

    Raises UserError where the folder holds other tensors, or is not what `save` writes.
    """
    load_listed(tensors, folder, Reader(folder).read_metadata())


def load_listed(tensors: Mapping[str, Tensor], folder: Path, metadata: Metadata) -> None:
    """The same by a list that was read before: of a large model it has tens of thousands of entries."""
    reader, wanted = Reader(folder), pieces(tensors)
    reader.set_up_storage_reader(metadata, True)
    planner = LoadPlanner(wanted, metadata, folder)
    try:
        with torch.no_grad():
            reader.read_data(planner.create_local_plan(), planner).wait()
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"{folder}: damaged: {str(error).splitlines()[0]}") from error


def load_whole(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, whole, under their names without it."""
    stored = Stored(folder, prefix)
    return stored.read(list(stored))


class Stored(Mapping[str, Tensor]):
    """The tensors whose names begin with `prefix`, by their names without it; read when they are asked for.

    Those of one block are read together, from files that are many, and kept until another one's are.
    """

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self.folder, self.prefix = folder, prefix
        self.metadata = Reader(folder).read_metadata()
        self.entries = {
            name.removeprefix(prefix): entry
            for name, entry in self.metadata.state_dict_metadata.items()
            if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
        }
        self.near: dict[str, Tensor] = {}

    def read(self, names: Sequence[str]) -> dict[str, Tensor]:
        found = {name: self.entries[name] for name in names}
        tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in found.items()}
        load_listed({self.prefix + name: tensor for name, tensor in tensors.items()}, self.folder, self.metadata)
        return tensors

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.near:
            self.near.clear()
            self.near = self.read([other for other in self.entries if block_of(other) == block_of(name)])
        return self.near[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def block_of(name: str) -> str:
    """h.3.attn.c_proj.weight -> h.3; what is in no block stands alone."""
    return ".".join(name.split(".")[:2]) if name.startswith("h.") else name


def names(folder: Path) -> set[str]:
    """What the folder holds, by name."""
    return set(Reader(folder).read_metadata().state_dict_metadata)


class SavePlanner(DefaultSavePlanner):
    """The default one, over pieces instead of tensors."""

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        local: Tensor = self.state_dict[index.fqn].local
        return local


class Writer(FileSystemWriter):
    """The default one, which does not note where on this machine it wrote."""

    def storage_meta(self) -> StorageMeta | None:
        return StorageMeta()


class LoadPlanner(DefaultLoadPlanner):
    """Reads into pieces, whatever pieces were written."""

    def __init__(self, wanted: Pieces, metadata: Metadata, folder: Path) -> None:
        super().__init__(flatten_state_dict=False)
        self.wanted, self.metadata, self.folder = wanted, metadata, folder

    def create_local_plan(self) -> LoadPlan:
        items = []
        for name, piece in self.wanted.items():
            stored = self.metadata.state_dict_metadata.get(name) if self.metadata else None
            if not isinstance(stored, TensorStorageMetadata):
                raise UserError(f"{self.folder}: holds no {name}; resume with the settings of the run")
            if stored.size != piece.shape:
                raise UserError(f"{self.folder}: {name} is {tuple(stored.size)}, not {tuple(piece.shape)}")
            items += create_read_items_for_chunk_list(name, stored, [piece.chunk()])
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.wanted[index.fqn].local


class Reader(FileSystemReader):
    """The default one, which runs no code of the folder's and looks nowhere else."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / METADATA
        try:
            with path.open("rb") as file:
                metadata = Unpickler(file).load()
            return checked(metadata)
        except Exception as error:  # a damaged pickle raises anything
            raise UserError(f"{path}: not a readable checkpoint ({error})") from None


class Unpickler(pickle.Unpickler):
    """Knows what `.metadata` is made of, all of it without effects, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name in CLASSES.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"it would import {module}.{name}")


def checked(metadata: Any) -> Metadata:
    """Raises ValueError unless every entry lies in a file of the folder itself."""
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise ValueError("no list of tensors")
    for place in metadata.storage_data.values():
        if not isinstance(place, _StorageInfo) or Path(place.relative_path).name != place.relative_path:
            raise ValueError("it names a file outside its folder")
    return metadata


@contextmanager
def without_crc() -> Iterator[None]:
    """Checksums of our own lie over every file; those that torch.save adds would take most of its time."""
    from torch.serialization import get_crc32_options, set_crc32_options

    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)
