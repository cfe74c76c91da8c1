"""What compiling leaves in memory and running does not need.

Loading compiled kernels brings some 70 MB of LLVM into the process, two thirds of it code that is not run again. The
system may have these pages back: they are the file's own, and would be read from it should they be wanted.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path

LIBRARY = "libllvmlite"
MAPS = Path("/proc/self/maps")


def let_go_of_compiler() -> int:
    """Give the compiler's code back to the system, on Linux; the bytes that may have lain in memory."""
    if not MAPS.exists() or not hasattr(mmap, "MADV_DONTNEED"):
        return 0
    libc = ctypes.CDLL(None)
    given = 0
    for start, end in code_of(LIBRARY, MAPS.read_text().splitlines()):
        if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED) == 0:
            given += end - start
    return given


def code_of(library: str, lines: list[str]) -> Iterator[tuple[int, int]]:
    """Where its code lies: mappings that may be run and not written, which is what makes it safe to drop them."""
    for line in lines:
        area, rights, _, _, _, *path = line.split(maxsplit=5)
        if path and library in path[0].rpartition("/")[2] and rights == "r-xp":
            start, end = area.split("-")
            yield int(start, 16), int(end, 16)
