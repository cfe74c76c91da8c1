"""How kernels are compiled: once for a processor, then kept on disk under a name of their own sources.

numba notices only a change of the file in which a kernel stands; kernels here are put together from several files. So
the folder's name holds a hash of all of them, and a changed helper can never meet machine code of yesterday.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba

from gpt2.kernels.elsewhere import compile_elsewhere

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
}
# Sums may be reordered and products fused; infinities and NaN keep their meaning.
FAST = {"reassoc", "contract", "arcp", "nsz"}


once = numba.njit(inline="always", error_model="numpy")  # made part of whatever calls it


def kernel(function: Callable[..., Any]) -> Any:
    """numba.njit without the interpreter's lock, cached in `folder()` where that can be written."""
    return _cached(function, fastmath=FAST)


def exact(function: Callable[..., Any]) -> Any:
    """The same with every sum in the order in which it is written."""
    return _cached(function)


def parallel(function: Callable[..., Any]) -> Any:
    """`kernel` whose prange is dealt out to numba's threads."""
    return _cached(function, fastmath=FAST, parallel=True)


def _cached(function: Callable[..., Any], **options: Any) -> Any:
    with _cache_folder() as writable:
        made = numba.njit(**OPTIONS, **options, cache=writable)(function)
    return compile_elsewhere(made) if writable else made


@functools.cache
def folder() -> Path:
    """Where this version's compiled kernels lie: GPT2_CACHE, else the user's own cache."""
    digest = hashlib.sha1(repr([os.environ.get(name) for name in ("GPT2_VECTORS", "NUMBA_CPU_NAME")]).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    if os.environ.get("GPT2_CACHE"):
        home = Path(os.environ["GPT2_CACHE"]).expanduser()
    elif sys.platform == "win32":
        home = Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local").expanduser() / "gpt2"
    else:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gpt2"
    return home / f"kernels-{digest.hexdigest()[:12]}"


@functools.cache
def _writable(path: Path) -> bool:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(path, os.W_OK)


@contextmanager
def _cache_folder() -> Iterator[bool]:
    """Point numba at our folder for as long as one decorator runs; False where nothing can be kept."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder())
    try:
        yield _writable(folder())
    finally:
        numba.config.CACHE_DIR = before
