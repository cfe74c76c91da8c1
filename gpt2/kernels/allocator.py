"""glibc's allocator told to keep what is freed, so that a step finds the pages of the step before.

By default every large tensor is mapped anew and its pages are zeroed on first touch: a tenth to a third of a training
step on a processor. The settings hold for the process, which gives less back to the system between steps.
"""

from __future__ import annotations

import ctypes
import functools
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
NEVER = 2**31 - 1


@functools.cache
def keep_freed_memory() -> bool:
    """Whether the allocator took it: glibc only."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
