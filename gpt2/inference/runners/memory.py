"""Memory as the processor's kernels want it: padded, on cache lines, in large pages."""

from __future__ import annotations

import contextlib
import mmap
from typing import Any

import numpy as np

LARGE = 2 << 20  # bytes


def padded(count: int, multiple: int) -> int:
    """The next multiple."""
    return -(-count // multiple) * multiple


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros that begin on a cache line."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = large(size + 64) if size >= LARGE else np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def large(size: int) -> np.ndarray:
    """Zeros in pages of megabytes where the system has them: touching small ones costs a prompt a third more."""
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)
