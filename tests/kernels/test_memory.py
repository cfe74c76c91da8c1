"""The compiler leaves memory when the kernels are loaded, and comes back when it is wanted."""

from __future__ import annotations

import sys

import pytest

from gpt2.kernels.memory import let_go_of_compiler, unchanged

LINES = """\
7f0000000000-7f0000001000 r--p 00000000 fe:00 12 /site packages/llvmlite/binding/libllvmlite.so
Rss:                   4 kB
Anonymous:             4 kB
7f0000001000-7f0000004000 r-xp 00001000 fe:00 12 /site packages/llvmlite/binding/libllvmlite.so
Rss:                   8 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
7f0000004000-7f0000005000 rw-p 00004000 fe:00 12 /site packages/llvmlite/binding/libllvmlite.so
Rss:                   4 kB
Anonymous:             0 kB
7f0000006000-7f0000007000 r-xp 00000000 fe:00 13 /libllvmlite/other.so
Rss:                   4 kB
Anonymous:             0 kB
7f0000008000-7f0000009000 r--p 00000000 00:00 0
Rss:                   4 kB
Anonymous:             0 kB
"""


def test_only_pages_of_the_library_that_nobody_changed_are_given_back() -> None:
    assert list(unchanged("libllvmlite", LINES.splitlines())) == [(0x7F0000001000, 0x7F0000004000, 8192)]


@pytest.mark.skipif(sys.platform != "linux", reason="others have no /proc")
def test_kernels_can_be_compiled_afterwards() -> None:
    numba = pytest.importorskip("numba")
    assert numba.njit(lambda x: x + 1)(1) == 2
    assert let_go_of_compiler() > 10 * 2**20
    assert numba.njit(lambda x: x + 2)(1) == 3
