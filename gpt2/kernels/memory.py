"""What compiling leaves in memory and running does not need.

Loading compiled kernels brings some 70 MB of LLVM into the process, nearly all of it code and tables that are not used
again. The system may have these pages back: they are the file's own, and are read from it should they be wanted.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

LIBRARY = "libllvmlite"
MAPS = Path("/proc/self/smaps")


def let_go_of_compiler() -> int:
    """Give the compiler's pages back to the system, on Linux; the bytes that lay in memory."""
    if not MAPS.exists() or not hasattr(mmap, "MADV_DONTNEED"):
        return 0
    libc = ctypes.CDLL(None)
    given = 0
    for start, end, resident in unchanged(LIBRARY, MAPS.read_text().splitlines()):
        if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED) == 0:
            given += resident
    return given


def unchanged(library: str, lines: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """(start, end, bytes in memory) of its mappings that cannot be written and hold no page that was: safe to drop."""
    area, ours, resident = "", False, 0
    for line in lines:
        name, value, *rest = line.split(maxsplit=5)
        if not name.endswith(":"):  # a mapping's first line: area, rights, offset, device, inode, path
            area, ours = name, value.startswith("r-") and library in (rest[3] if len(rest) > 3 else "").split("/")[-1]
        elif ours and name == "Rss:":
            resident = int(value) * 1024
        elif ours and name == "Anonymous:" and value == "0":
            start, end = area.split("-")
            yield int(start, 16), int(end, 16), resident
