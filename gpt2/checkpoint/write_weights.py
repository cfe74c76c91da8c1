"""A model folder's weights on disk: one safetensors file or, of a large model, several and their index, as Hugging Face
has them. Tensors may come one at a time: no more of them is in memory than one file holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2 import atomic

if TYPE_CHECKING:
    from torch import Tensor

FILE_BYTES = 5 * 10**9  # of one file: Hugging Face's own measure


def write_weights(folder: Path, name: str, tensors: Iterable[tuple[str, Tensor]], most: int = FILE_BYTES) -> None:
    """Into the file `name`, or into several of at most `most` bytes; what was there of that name is replaced."""
    from safetensors.torch import save_file

    places: dict[str, str] = {}
    size = 0
    for number, batch in enumerate(by_size(tensors, most), 1):
        path = part_of(folder / name, number)
        with writing(folder / name), atomic.replacing(path) as temporary:
            save_file(batch, temporary, metadata={"format": "pt"})
        places |= dict.fromkeys(batch, path.name)
        size += sum(tensor.nbytes for tensor in batch.values())
        batch.clear()  # before the next one is read
    several = sorted(set(places.values()))
    if len(several) == 1:
        (folder / several.pop()).replace(folder / name)
    else:
        index = {"metadata": {"total_size": size}, "weight_map": places}
        atomic.write_text(folder / f"{name}.index.json", json.dumps(index, indent=2) + "\n")
    remove_weights(folder, name, but=[*several, f"{name}.index.json"] if several else [name])


def part_of(path: Path, number: int) -> Path:
    """model.safetensors -> model-00001.safetensors."""
    return path.with_name(f"{path.stem}-{number:05d}{path.suffix}")


def by_size(tensors: Iterable[tuple[str, Tensor]], most: int) -> Iterator[dict[str, Tensor]]:
    """Tensors in their order, as many together as `most` bytes have room for, at least one."""
    batch: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if batch and sum(other.nbytes for other in batch.values()) + tensor.nbytes > most:
            yield batch
            batch = {}
        batch[name] = tensor
    yield batch


def remove_weights(folder: Path, name: str, but: Iterable[str] = ()) -> None:
    """A weight file, whole or in several with an index, without those that are named."""
    paths = {folder / name, folder / f"{name}.index.json", *folder.glob(f"{Path(name).stem}-*.safetensors")}
    for path in paths - {folder / kept for kept in but}:
        path.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the safetensors library's own write error (a full disk, say) into an OSError that names the file."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path}: could not be written: {error}") from error
