"""What this processor can multiply with, as LLVM knows it, and which kernels that makes ours."""

from __future__ import annotations

import os

import llvmlite.binding as llvm


def host_features() -> dict[str, bool]:
    """What this processor can do, in LLVM's names; empty where GPT2_VECTORS=plain asks for code that runs anywhere."""
    if os.environ.get("GPT2_VECTORS") == "plain" or os.environ.get("NUMBA_CPU_NAME"):
        return {}
    return dict(llvm.get_host_cpu_features())


HAS_BF16 = all(host_features().get(name, False) for name in ("avx512f", "avx512bf16"))
HAS_VNNI = all(host_features().get(name, False) for name in ("avx512f", "avx512bw", "avx512vnni"))
HAS_AVX2 = host_features().get("avx2", False)
HAS_AVX512 = host_features().get("avx512f", False)


def by_avx2() -> bool:
    """Whether bytes are multiplied by AVX2's own products, for want of VNNI's."""
    return HAS_AVX2 and not HAS_VNNI


def by_floats() -> bool:
    """Whether AVX2 is all there is: kernels of our own train in float32, and tiles for its registers write."""
    return HAS_AVX2 and not HAS_AVX512
