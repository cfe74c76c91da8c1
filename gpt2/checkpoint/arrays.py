"""safetensors files as numpy arrays that lie in the mapped file: nothing is read before it is used, no torch.

The format is that of https://github.com/huggingface/safetensors: eight bytes of header length, a header in JSON, data.
Headers come from strangers: what does not hold together is a UserError of one line.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2 import atomic
from gpt2.errors import UserError
from gpt2.model.quant import from_bfloat16

DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "I16": "<i2",
    "U16": "<u2",
    "F16": "<f2",
    "BF16": "<u2",  # its bits: numpy has no such type
    "I32": "<i4",
    "U32": "<u4",
    "F32": "<f4",
    "I64": "<i8",
    "U64": "<u8",
    "F64": "<f8",
}
WRITTEN = {np.dtype(DTYPES[name]): name for name in ("U8", "U16", "F32")}
LONGEST_HEADER = 100_000_000  # bytes, the library's own limit
ALIGNMENT = 64  # of each tensor that is written: a cache line
PADDING = "padding."  # tensors that only fill the way to the next cache line


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: bytes from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Stored:
    """A tensor that still lies in its file. `raw` is its memory; bfloat16 shows as uint16."""

    raw: npt.NDArray[Any]
    dtype: str
    file: ArrayFile
    entry: Entry

    @property
    def shape(self) -> tuple[int, ...]:
        return self.raw.shape

    @property
    def T(self) -> Stored:
        return replace(self, raw=self.raw.T)

    def any(self) -> bool:
        return bool(self.floats().any())

    def floats(self) -> npt.NDArray[np.float32]:
        """The numbers in float32: the mapped memory itself where it holds such, else a copy."""
        floats = from_bfloat16(self.raw) if self.dtype == "BF16" else self.raw
        return np.require(floats, np.float32, "A")  # a header of odd length leaves all the data unaligned

    def release(self) -> None:
        """Let the pages go that reading brought into memory; they come back when they are read again."""
        self.file.release(self.entry)


class ArrayFile:
    """A safetensors file, mapped into memory."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            try:
                self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:  # an empty file cannot be mapped
                raise damaged(path, "it is empty") from None
        self.path = path
        self.entries, self.metadata = parse_header(path, self.memory)

    def __iter__(self) -> Iterator[tuple[str, Stored]]:
        for name in self.entries:
            yield name, self[name]

    def __getitem__(self, name: str) -> Stored:
        entry = self.entries[name]
        dtype = np.dtype(DTYPES[entry.dtype])
        flat = np.frombuffer(self.memory, dtype, count=math.prod(entry.shape), offset=entry.begin)
        return Stored(flat.reshape(entry.shape), entry.dtype, self, entry)

    def release(self, entry: Entry) -> None:
        """See Stored. Systems that lack the call keep the pages until they need the memory."""
        if hasattr(mmap, "MADV_DONTNEED"):
            begin = -(-entry.begin // mmap.PAGESIZE) * mmap.PAGESIZE
            length = entry.end // mmap.PAGESIZE * mmap.PAGESIZE - begin
            if length > 0:
                self.memory.madvise(mmap.MADV_DONTNEED, begin, length)


def parse_header(path: Path, memory: mmap.mmap) -> tuple[dict[str, Entry], dict[str, str]]:
    """(name -> entry, metadata); UserError for anything that the format forbids."""
    if len(memory) < 8:
        raise damaged(path, "it ends in its header")
    length: int = struct.unpack("<Q", memory[:8])[0]
    if length > min(LONGEST_HEADER, len(memory) - 8):
        raise damaged(path, "it ends in its header")
    try:
        header = json.loads(memory[8 : 8 + length], object_pairs_hook=_no_twins)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"its header is no JSON: {error}") from None
    if not isinstance(header, dict):
        raise damaged(path, "its header is no table")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise damaged(path, "its metadata is no table of texts")
    entries = {name: _entry(path, name, value, 8 + length) for name, value in header.items()}
    _check_places(path, entries, 8 + length, len(memory))
    return entries, metadata


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _entry(path: Path, name: str, value: Any, start: int) -> Entry:
    """One line of the header, checked by itself."""
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError):
        raise damaged(path, f"{name} lacks dtype, shape or data_offsets") from None
    if not all(type(number) is int and 0 <= number < 2**60 for number in numbers):
        raise damaged(path, f"{name} has a shape or place that is no whole number")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UserError(f"{path}: {name} is of type {dtype!r}; known are {', '.join(DTYPES)}")
    if len(shape) > 32 or end - begin != math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize:
        raise damaged(path, f"{name} has {end - begin} bytes, which is not its shape {shape} in {dtype}")
    return Entry(dtype, tuple(shape), start + begin, start + end)


def _check_places(path: Path, entries: Mapping[str, Entry], start: int, size: int) -> None:
    """Tensors follow each other without gap or overlap, from the header's end to the file's."""
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.end > size:
            raise damaged(path, f"it ends in {name}")
        if entry.begin != position:
            raise damaged(path, f"{name} begins {'inside' if entry.begin < position else 'behind a gap after'} another")
        position = entry.end
    if position != size:
        raise damaged(path, f"{size - position} bytes at its end belong to nothing")


def damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: damaged or not safetensors ({reason}); fetch or save it again")


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write arrays of uint8, uint16 and float32; each begins at a multiple of 64 bytes. Whole or not there at all.

    The format knows no gaps, so tensors named `padding.N` fill them: the safetensors library reads the file too.
    """
    pieces = list(_with_padding(arrays))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, array in pieces:
        end = position + array.nbytes
        header[name] = {"dtype": WRITTEN[array.dtype], "shape": list(array.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with atomic.replacing(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in pieces:
            file.write(np.ascontiguousarray(array).data)


def _with_padding(arrays: Mapping[str, npt.NDArray[Any]]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for number, (name, array) in enumerate(arrays.items()):
        yield name, array
        if array.nbytes % ALIGNMENT:
            yield f"{PADDING}{number}", np.zeros(-array.nbytes % ALIGNMENT, np.uint8)
