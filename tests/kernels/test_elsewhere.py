"""A kernel's bits are those of the cache from its first call on, as another process compiles it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from gpt2.kernels import cache, elsewhere
from gpt2.kernels.cache import kernel

CODE = """
import hashlib
import numpy as np
from gpt2.kernels import again
dice = np.random.default_rng(0)
x, gain, shift = (dice.standard_normal(shape, dtype=np.float32) for shape in ((224, 64), 64, 64))
out = np.empty_like(x)
again.layer_norm(x, gain, shift, np.float32(1e-5), out)
print(hashlib.sha256(out).hexdigest(), sum(again.layer_norm.stats.cache_hits.values()))
"""


def run(cache: Path, **environment: str) -> list[str]:
    environment |= {"GPT2_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_the_process_for_which_a_kernel_was_compiled_has_the_bits_of_the_next(tmp_path: Path) -> None:
    first, hits = run(tmp_path)
    assert hits == "1", "it was read, not compiled here"
    assert run(tmp_path) == [first, "1"]


@kernel
def twice(x: float) -> float:
    return x + x


def test_where_there_is_no_other_process_it_is_compiled_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    alone = elsewhere._Compiler()
    assert not alone.compile(__name__, "twice", (numba.float64,))
    monkeypatch.setattr(elsewhere, "_compiler", alone)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "folder", lambda: tmp_path)
        patch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
        fresh = kernel(twice.py_func)
        assert fresh(2.0) == 4.0 and sum(fresh.stats.cache_misses.values()) == 1


def test_what_cannot_be_named_is_compiled_here() -> None:
    def inner(x: float) -> float:
        return x

    made = numba.njit(cache=True)(inner)
    assert elsewhere.compile_elsewhere(made) is made and "load_overload" not in vars(made._cache)
