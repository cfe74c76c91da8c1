"""Whether float32 is trained in by kernels of ours here; asked before numba is loaded, which not every machine has."""

from __future__ import annotations

import functools
from typing import Any


def by_floats() -> bool:
    """Whether this processor has AVX2 and nothing wider (features.py), and numba is here."""
    features = _features()
    return features is not None and bool(features.by_floats())


@functools.cache
def _features() -> Any:
    try:
        import numba  # noqa: F401

        from gpt2.kernels import features
    except Exception:  # a numba that does not fit numpy fails in many ways
        return None
    return features
