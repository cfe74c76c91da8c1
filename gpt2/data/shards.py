"""Shards of token ids on disk, and `meta.json`, which describes them.

Two forms: nanoGPT's (`data/*/prepare.py`: headerless little-endian uint16; uint32 where the vocabulary needs it) and
llm.c's (`dev/data/data_common.py`: 256 int32 of header, then the ids). Both are read without a `meta.json` too.
"""

from __future__ import annotations

import bisect
import io
import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from gpt2.atomic import write_text
from gpt2.config import build
from gpt2.errors import UserError

Format = Literal["nanogpt", "llmc"]

META_VERSION = 1
LLMC_HEADER = 256  # int32 numbers: magic, version, number of tokens, zeros
LLMC_KINDS = {"uint16": (20240520, 1), "uint32": (20240801, 7)}
LLMC_SHARD_TOKENS = 100_000_000  # FineWeb's shards in llm.c and modded-nanogpt; the header's count is an int32
GPT2_VOCAB = 50257


@dataclass(frozen=True)
class SplitMeta:
    """One side. `text_bytes` counts UTF-8; `preceding` is the token before the first (none: null)."""

    files: tuple[str, ...] = ()
    tokens: int = 0
    documents: int | None = None
    text_bytes: int | None = None
    preceding: int | None = None


@dataclass(frozen=True)
class Meta:
    """What `meta.json` says. `eot_id` ends each document (null: documents are not ended)."""

    format: Format = "nanogpt"
    version: int = META_VERSION
    dtype: Literal["uint16", "uint32"] = "uint16"
    vocab_size: int = GPT2_VOCAB
    tokenizer: str | None = None
    tokenizer_hash: str | None = None
    eot_id: int | None = None
    bytes_per_token: float | None = None
    source: str | None = None
    split: str | None = None
    val_fraction: float | None = None
    seed: int | None = None
    fingerprint: str | None = None
    train: SplitMeta = field(default_factory=SplitMeta)
    val: SplitMeta = field(default_factory=SplitMeta)

    def save(self, folder: Path) -> None:
        write_text(folder / "meta.json", json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")


def dtype_for(vocab_size: int) -> Literal["uint16", "uint32"]:
    """The narrowest of the two that holds every id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def read_meta(folder: str | Path) -> Meta:
    """What `meta.json` says, or what can be known of a folder of nanoGPT's or llm.c's without one."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such data folder; make one with: gpt2 prepare SOURCE --out {folder}")
    path = folder / "meta.json"
    if not path.exists():
        return _foreign_meta(folder)
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}; prepare the data again") from None
    if not isinstance(tree, dict) or tree.get("version") != META_VERSION:
        raise UserError(f"{path}: not a meta.json of version {META_VERSION}; prepare the data again with gpt2 prepare")
    return build(Meta, tree, origin=str(path))


def _foreign_meta(folder: Path) -> Meta:
    """By nanoGPT's convention the vocabulary is that of `meta.pkl`, else GPT-2's."""
    sides = {name: _foreign_split(folder, name) for name in ("train", "val")}
    if not sides["train"].files and not sides["val"].files:
        raise UserError(
            f"{folder}: neither meta.json nor *train*.bin in it; make it with: gpt2 prepare SOURCE --out DIR"
        )
    first = folder / (sides["train"].files or sides["val"].files)[0]
    header = _llmc_header(first)
    symbols = nanogpt_symbols(folder)
    return Meta(
        format="nanogpt" if header is None else "llmc",
        dtype="uint16" if header is None else cast(Literal["uint16", "uint32"], header[0]),
        vocab_size=len(symbols) if symbols else GPT2_VOCAB,
        train=sides["train"],
        val=sides["val"],
    )


def _foreign_split(folder: Path, name: str) -> SplitMeta:
    paths = sorted(path for path in folder.glob(f"*{name}*.bin") if not path.name.startswith("."))
    tokens = sum(_count_tokens(path, "uint16") for path in paths)
    return SplitMeta(files=tuple(path.name for path in paths), tokens=tokens)


class _NoCode(pickle.Unpickler):
    """Reads containers, text and numbers; refuses whatever would import, and so run, something."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it would import {module}.{name}")


def nanogpt_symbols(folder: str | Path) -> list[str] | None:
    """The characters of nanoGPT's `meta.pkl`, by id, or None where there is none. Runs no code from the pickle."""
    path = Path(folder) / "meta.pkl"
    if not path.exists():
        return None
    try:
        tree = _NoCode(io.BytesIO(path.read_bytes())).load()
        itos: Mapping[int, str] = tree["itos"]
        return [str(itos[index]) for index in range(tree["vocab_size"])]
    except Exception as error:  # a damaged pickle raises anything
        raise UserError(f"{path}: not nanoGPT's meta.pkl ({error}); remove it, or prepare the data again") from None


def _llmc_header(path: Path) -> tuple[str, int] | None:
    """(dtype, tokens) of a file with llm.c's header, None for one without."""
    with path.open("rb") as file:
        head = file.read(4 * LLMC_HEADER)
    if len(head) == 4 * LLMC_HEADER:
        magic, version, tokens = np.frombuffer(head, "<i4")[:3].tolist()
        for dtype, kind in LLMC_KINDS.items():
            if kind == (magic, version):
                return dtype, tokens
    return None


def _count_tokens(path: Path, dtype: str) -> int:
    header = _llmc_header(path)
    if header is not None:
        return header[1]
    size, width = path.stat().st_size, np.dtype(dtype).itemsize
    if size % width:
        raise UserError(f"{path}: {size:,} bytes is no whole number of {dtype} tokens; prepare the data again")
    return size // width


def map_ids(path: Path, dtype: str) -> npt.NDArray[Any]:
    """A file's ids, mapped into memory; whatever header it has is left out."""
    header = _llmc_header(path)
    tokens = _count_tokens(path, dtype)
    if tokens == 0:
        return np.empty(0, dtype)
    kind, offset = (np.dtype(dtype), 0) if header is None else (np.dtype(header[0]), 4 * LLMC_HEADER)
    if path.stat().st_size != offset + tokens * kind.itemsize:
        raise UserError(f"{path}: its header says {tokens:,} tokens, its size does not; prepare the data again")
    return np.memmap(path, kind.newbyteorder("<"), "r", offset, (tokens,))


class Split:
    """One side of a data folder: a long row of token ids over one or more files, mapped into memory."""

    def __init__(self, folder: Path, name: str, meta: Meta) -> None:
        mine: SplitMeta = getattr(meta, name)
        for file in mine.files:
            if not (folder / file).exists():
                raise UserError(f"{folder / file}: missing; prepare the data again")
        self.folder, self.name, self.meta = folder, name, meta
        self.text_bytes, self.preceding = mine.text_bytes, mine.preceding
        self._files = [map_ids(folder / file, meta.dtype) for file in mine.files]
        self._starts = [0, *np.cumsum([len(file) for file in self._files]).tolist()]
        if len(self) != mine.tokens:
            raise UserError(
                f"{folder}: {name} has {len(self):,} tokens, not meta.json's {mine.tokens:,}; prepare it again"
            )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def tokens(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The ids from `start` up to `stop`, a fresh int64 array. Raises IndexError outside of the split."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of {len(self)}")
        out = np.empty(stop - start, np.int64)
        index = bisect.bisect_right(self._starts, start) - 1
        at = start
        while at < stop:
            end = min(stop, self._starts[index + 1])
            first = self._starts[index]
            out[at - start : end - start] = self._files[index][at - first : end - first]
            at, index = end, index + 1
        return out


def open_split(folder: str | Path, name: str) -> Split:
    """Open `train` or `val` of a data folder: ours, nanoGPT's, or one of llm.c's files.

    Raises UserError for a folder without that side, and for damaged files.
    """
    if name not in ("train", "val"):
        raise UserError(f"'{name}' is no split; choose train or val")
    split = Split(Path(folder), name, read_meta(folder))
    if not len(split):
        raise UserError(f"{folder}: no {name} tokens in it; prepare the data again")
    return split


class ShardWriter:
    """Appends ids to `NAME.bin`, or to `NAME_000000.bin` and so on when `shard_tokens` is given.

    Opened at a `position` in tokens, it drops whatever lies behind: an interrupted run goes on from there.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        dtype: Literal["uint16", "uint32"],
        format: Format = "nanogpt",
        shard_tokens: int | None = None,
        position: int = 0,
    ) -> None:
        self.folder, self.name, self.shard_tokens, self.position = folder, name, shard_tokens, position
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._kind = LLMC_KINDS[dtype] if format == "llmc" else None
        self._offset = 4 * LLMC_HEADER if self._kind else 0
        self._file: io.BufferedRandom | None = None
        self._drop_later_files()
        if self._tokens_in_file():
            self._open()

    def path(self, index: int) -> Path:
        return self.folder / (f"{self.name}.bin" if self.shard_tokens is None else f"{self.name}_{index:06d}.bin")

    @property
    def files(self) -> list[str]:
        """Names of the files that hold what was written."""
        count = 1 if self.shard_tokens is None else -(-self.position // self.shard_tokens)
        return [self.path(index).name for index in range(count)] if self.position else []

    def write(self, ids: npt.NDArray[Any]) -> None:
        """Append ids, over as many files as it takes."""
        while len(ids):
            room = len(ids) if self.shard_tokens is None else self.shard_tokens - self._tokens_in_file()
            now, ids = ids[:room], ids[room:]
            file = self._file or self._open()
            file.write(now.astype(self.dtype, copy=False).tobytes())
            self.position += len(now)
            if self.shard_tokens is not None and self._tokens_in_file() == 0:
                self._finish(self.shard_tokens)

    def sync(self) -> None:
        """Make sure that all written so far outlives a power cut."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """End the last file. Its header, if any, is whole only now."""
        if self._file is not None:
            self._finish(self._tokens_in_file())

    def _tokens_in_file(self) -> int:
        return self.position if self.shard_tokens is None else self.position % self.shard_tokens

    def _drop_later_files(self) -> None:
        kept = set(self.files)
        for path in self.folder.glob(f"{self.name}*.bin"):
            if path.name not in kept:
                path.unlink()

    def _open(self) -> io.BufferedRandom:
        path = self.path(0 if self.shard_tokens is None else self.position // self.shard_tokens)
        path.touch()
        file = path.open("r+b")
        file.truncate(self._offset + self._tokens_in_file() * self.dtype.itemsize)  # grows to hold the header
        file.seek(0, os.SEEK_END)
        self._file = file
        return file

    def _finish(self, tokens: int) -> None:
        assert self._file is not None
        if self._kind:
            header = np.zeros(LLMC_HEADER, "<i4")
            header[:3] = (*self._kind, tokens)
            self._file.seek(0)
            self._file.write(header.tobytes())
        self.sync()
        self._file.close()
        self._file = None
