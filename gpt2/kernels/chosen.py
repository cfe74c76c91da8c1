"""Whether float32 is trained in by kernels of ours here; asked before numba is loaded, which not every machine has."""

from __future__ import annotations

import functools
from typing import Any


def by_floats() -> bool:
    """Whether this processor has AVX2 and nothing wider (vectors.py), and numba is here."""
    vectors = _vectors()
    return vectors is not None and bool(vectors.by_floats())


@functools.cache
def _vectors() -> Any:
    try:
        from gpt2.kernels import vectors
    except Exception:  # a numba that does not fit numpy fails in many ways
        return None
    return vectors
