"""A model folder's weights on disk: one safetensors file or, of a large model, several and their index, as Hugging Face
has them. Tensors may come one at a time: no more of them is in memory than one file holds."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2 import atomic

if TYPE_CHECKING:
    from torch import Tensor

FILE_BYTES = 5 * 10**9  # of one file: Hugging Face's own measure


def write_weights(folder: Path, name: str, tensors: Iterable[tuple[str, Tensor]], most: int = FILE_BYTES) -> None:
    """Into the file `name`, or into several of at most `most` bytes; what was there of that name is replaced.

    At every moment the folder holds the old weights or the new ones: parts have names that no index lists yet.
    """
    from safetensors.torch import save_file

    stem = free_stem(folder, Path(name).stem)
    places: dict[str, str] = {}
    size = 0
    try:
        for number, batch in enumerate(by_size(tensors, most), 1):
            path = folder / f"{stem}-{number:05d}.safetensors"
            with writing(folder / name), atomic.replacing(path) as temporary:
                save_file(batch, temporary, metadata={"format": "pt"})
            places |= dict.fromkeys(batch, path.name)
            size += sum(tensor.nbytes for tensor in batch.values())
            batch.clear()  # before the next one is read
        several = sorted(set(places.values()))
        old = parts(folder, name) - set(several)
        if len(several) == 1:
            (folder / several[0]).replace(folder / name)
            atomic.sync(folder)
            remove(folder, {*old, f"{name}.index.json"})
        else:
            index = {"metadata": {"total_size": size}, "weight_map": places}
            atomic.write_text(folder / f"{name}.index.json", json.dumps(index, indent=2) + "\n")
            remove(folder, {*old, name})
    except BaseException:
        remove(folder, set(places.values()) - listed(folder, name))
        raise


def remove_weights(folder: Path, name: str) -> None:
    """A weight file, whole or in several with an index."""
    remove(folder, {name, *parts(folder, name), f"{name}.index.json"})


def remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


def free_stem(folder: Path, stem: str) -> str:
    """What new parts' names begin with: `model`, or `model-2` and so on where there are some of it."""
    names = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    return next(name for name in names if not any(folder.glob(f"{name}-{'[0-9]' * 5}.safetensors")))


def parts(folder: Path, name: str) -> set[str]:
    """Files of a model in several: those of its index, and those that a save left that did not come to write one."""
    pattern = re.compile(rf"{re.escape(Path(name).stem)}(-\d+)?-\d{{5}}(-of-\d{{5}})?\.safetensors")
    return listed(folder, name) | {path.name for path in folder.iterdir() if pattern.fullmatch(path.name)}


def listed(folder: Path, name: str) -> set[str]:
    """The files that an index lists, none where there is no sound one."""
    try:
        found = json.loads((folder / f"{name}.index.json").read_text(encoding="utf-8"))["weight_map"].values()
        return {file for file in found if Path(file).name == file}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return set()


def by_size(tensors: Iterable[tuple[str, Tensor]], most: int) -> Iterator[dict[str, Tensor]]:
    """Tensors in their order, as many together as `most` bytes have room for, at least one."""
    batch: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if batch and sum(other.nbytes for other in batch.values()) + tensor.nbytes > most:
            yield batch
            batch = {}
        batch[name] = tensor
    yield batch


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the safetensors library's own write error (a full disk, say) into an OSError that names the file."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path}: could not be written: {error}") from error
