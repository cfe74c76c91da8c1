"""What the user named as sources, turned into a list of things to read, in an order that never varies."""

from __future__ import annotations

import glob
import hashlib
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt2.errors import UserError, did_you_mean

Kind = Literal["text", "jsonl", "csv", "tsv", "parquet", "rows"]

TABLES: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
PROSE = (".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org")
CODE = (".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".java", ".js", ".ts", ".go", ".rs", ".rb", ".sh")
FOLDER_SUFFIXES = (*PROSE, *CODE, *TABLES)

STDLIB_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages"} | {
    "idlelib",
    "encodings",
    "pydoc_data",
    "lib2to3",
}


@dataclass(frozen=True)
class Item:
    """One thing to read: a file, or the rows of a dataset. `stamp` changes when its content does."""

    name: str
    kind: Kind
    size: int  # bytes on disk, or rows; only progress is measured by it
    stamp: str
    path: Path = Path()
    rows: Any = None  # kind "rows": a Hugging Face dataset


def expand(specs: Sequence[str], spool: Callable[[], Path]) -> list[Item]:
    """Turn SOURCE arguments into items: files and folders in the order given, a folder's files sorted by path.

    A file named twice is read once. `spool` is called for `-` and returns a file that holds standard input.
    Raises UserError for whatever cannot be found.
    """
    items: dict[str, Item] = {}
    for spec in specs:
        for item in _expand_one(spec, spool):
            items.setdefault(item.stamp, item)
    return list(items.values())


def _expand_one(spec: str, spool: Callable[[], Path]) -> Iterator[Item]:
    if spec == "-":
        yield _stdin(spool())
    elif spec == "stdlib:":
        yield from (_file(path) for path in stdlib_files())
    elif spec.startswith("hf:"):
        yield _hugging_face(spec)
    elif Path(spec).is_dir():
        yield from _folder(Path(spec))
    elif Path(spec).exists():
        yield _file(Path(spec))
    elif glob.has_magic(spec):
        yield from _glob(spec)
    else:
        raise UserError(f"{spec}: no such file or folder{_nearest(Path(spec))}")


def _nearest(path: Path) -> str:
    try:
        return did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()])
    except OSError:
        return ""


def _file(path: Path) -> Item:
    suffix = path.suffix.lower()
    if suffix == ".json":
        raise UserError(f"{path}: a .json file is not read; give JSON Lines, one object on each line, named .jsonl")
    if suffix in (".gz", ".zst", ".bz2", ".xz", ".zip"):
        raise UserError(f"{path}: compressed; unpack it first, or pipe it in: COMMAND | gpt2 prepare - ...")
    status = path.stat()
    resolved = path.resolve()
    stamp = f"{resolved.as_posix()} {status.st_size} {status.st_mtime_ns}"
    return Item(str(path), TABLES.get(suffix, "text"), status.st_size, stamp, resolved)


def _folder(folder: Path) -> Iterator[Item]:
    paths = sorted(_walk(folder, skip=lambda name: name.startswith(".")), key=lambda path: path.as_posix())
    chosen = [path for path in paths if path.suffix.lower() in FOLDER_SUFFIXES]
    if not chosen:
        raise UserError(f"{folder}: no file in it ends in one of {' '.join(FOLDER_SUFFIXES)}; name others one by one")
    yield from (_file(path) for path in chosen)


def _walk(folder: Path, skip: Callable[[str], bool]) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not skip(name)]
        yield from (Path(where, name) for name in files if not skip(name))


def _glob(pattern: str) -> Iterator[Item]:
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())  # noqa: PTH207
    if not paths:
        raise UserError(f"{pattern}: no file matches; put the pattern in quotes, and ** for folders at any depth")
    yield from (_file(Path(path)) for path in paths)


def stdlib_files() -> list[Path]:
    """The running Python's own library, `*.py`: a corpus that every user already has.

    Left out: tests, installed packages, IDLE, the encodings' tables, pydoc's data and lib2to3.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found = _walk(root, skip=lambda name: name in STDLIB_LEFT_OUT or name == "__pycache__")
    files = sorted((path for path in found if path.suffix == ".py"), key=lambda path: path.as_posix())
    if not files:
        raise UserError(f"stdlib: this Python has no library sources in {root}; name a text file or folder instead")
    return files


def _stdin(path: Path) -> Item:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return Item("<stdin>", "text", path.stat().st_size, f"stdin {digest.hexdigest()}", path)


def spool_stdin(target: Path) -> Path:
    """Copy standard input to `target`: it is read more than once. Raises UserError at a terminal."""
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError("-: standard input is a terminal; pipe the text in, as in: cat book.txt | gpt2 prepare - ...")
    with target.open("wb") as file:
        for block in iter(lambda: sys.stdin.buffer.read(1 << 20), b""):
            file.write(block)
    return target


def _hugging_face(spec: str) -> Item:
    """`hf:NAME` or `hf:NAME:CONFIG`: the dataset's `train` rows, from the cache or the network."""
    name, _, config = spec.removeprefix("hf:").partition(":")
    try:
        import datasets
    except ImportError:
        raise UserError(f"{spec}: needs the datasets package: pip install 'gpt2[data]'") from None
    try:
        rows = datasets.load_dataset(name, config or None, split="train")
    except Exception as error:  # the hub's client raises a dozen kinds
        first_line = str(error).strip().partition("\n")[0]
        raise UserError(f"{spec}: cannot be loaded (no network, or no such dataset?): {first_line}") from error
    stamp = f"{spec} {getattr(rows, '_fingerprint', '')} {len(rows)}"
    return Item(spec, "rows", len(rows), stamp, rows=rows)


def has_columns(items: Iterable[Item]) -> bool:
    """Whether any item has a text column to choose."""
    return any(item.kind != "text" for item in items)
