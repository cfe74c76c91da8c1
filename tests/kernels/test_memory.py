"""The compiler's code leaves memory when the kernels are loaded, and comes back when it is wanted."""

from __future__ import annotations

import sys

import pytest

from gpt2.kernels.memory import code_of, let_go_of_compiler

LINES = """\
7f0000000000-7f0000001000 r--p 00000000 fe:00 12 /site packages/llvmlite/binding/libllvmlite.so
7f0000001000-7f0000004000 r-xp 00001000 fe:00 12 /site packages/llvmlite/binding/libllvmlite.so
7f0000004000-7f0000005000 rw-p 00004000 fe:00 12 /site packages/llvmlite/binding/libllvmlite.so
7f0000006000-7f0000007000 r-xp 00000000 fe:00 13 /libllvmlite/other.so
7f0000008000-7f0000009000 rw-p 00000000 00:00 0
"""


def test_only_the_librarys_code_is_given_back() -> None:
    assert list(code_of("libllvmlite", LINES.splitlines())) == [(0x7F0000001000, 0x7F0000004000)]


@pytest.mark.skipif(sys.platform != "linux", reason="others have no /proc")
def test_kernels_can_be_compiled_afterwards() -> None:
    numba = pytest.importorskip("numba")
    assert let_go_of_compiler() > 10 * 2**20
    assert numba.njit(lambda x: x + 1)(1) == 2
