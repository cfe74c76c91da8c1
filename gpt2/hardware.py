"""What the hardware can do at best: memory bandwidth and matrix-multiply peaks, from a table or measured.

Speeds are reported as a share of these limits.
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Dense peak in FLOP/s of 16-bit matrix multiplication with 32-bit sums, from the makers' data sheets (no sparsity).
# bfloat16, but for V100 and T4, which have float16 only. The first name found in the device's own name counts.
GPU_PEAKS: tuple[tuple[str, float], ...] = (
    ("GB200", 2500e12),
    ("B200", 2250e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H800", 989e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("A40", 150e12),
    ("A30", 165e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("V100", 125e12),
    ("T4", 65e12),
    ("RTX 5090", 209e12),
    ("RTX 4090", 165e12),
    ("RTX 4080", 97e12),
    ("RTX 3090", 71e12),
    ("RTX 3080", 59e12),
    ("MI355X", 2500e12),
    ("MI325X", 1307e12),
    ("MI300X", 1307e12),
    ("MI250X", 383e12),
)


def table_peak(name: str, dtype: str) -> float | None:
    """FLOP/s printed for a GPU of this name, or None where the table knows nothing of it (float32 included)."""
    words = name.lower().replace("-", " ").split()
    if dtype not in ("bfloat16", "float16") or _VARIANTS.intersection(words):
        return None
    spaced = f" {' '.join(words)} "
    return next((peak for known, peak in GPU_PEAKS if f" {known.lower()} " in spaced), None)


# Processor features that make matrix multiplication fast, as Linux spells them: x86, then ARM.
_X86 = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8")
FEATURES = (*_X86, "asimddp", "i8mm", "bf16", "sve", "sve2")
_VARIANTS = {"laptop", "mobile", "ti", "super", "max"}  # other chips under a known name


@functools.cache
def device_peak(device: str, dtype: str) -> float:
    """FLOP/s at best of a device: the maker's figure for a known GPU, else measured here once."""
    if device.startswith("cuda"):
        import torch

        printed = table_peak(torch.cuda.get_device_name(device), dtype)
        if printed is not None:
            return printed
    return gemm_peak(device, dtype)


def gemm_peak(device: str = "cpu", dtype: str = "float32", seconds: float = 0.25) -> float:
    """FLOP/s of the best of several square matrix multiplications (1024 on a processor, 8192 on a GPU)."""
    import torch

    size = 1024 if device == "cpu" else 8192 if device.startswith("cuda") else 4096
    dice = torch.Generator().manual_seed(0)  # of its own: a resumed run must find the global one as it left it
    left = torch.randn(size, size, generator=dice).to(device=device, dtype=getattr(torch, dtype))
    right, out = left.clone(), torch.empty_like(left)

    def multiply() -> None:
        torch.mm(left, right, out=out)
        synchronize(device)

    return 2 * size**3 / best_time(multiply, seconds)


def memory_bandwidth(device: str = "cpu", seconds: float = 0.25) -> float:
    """Bytes per second read from main (or the GPU's) memory, by summing an array far larger than the caches."""
    import torch

    size = 256 * 2**20 if device == "cpu" else 2 * 2**30
    array = torch.ones(size // 4, dtype=torch.float32, device=device)

    def read() -> None:
        array.sum()
        synchronize(device)

    return size / best_time(read, seconds)


def best_time(action: Callable[[], None], seconds: float) -> float:
    """Shortest run of `action` in seconds: once to warm up, then at least three times and for about `seconds`."""
    action()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given; a processor always has."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()


def cores() -> int:
    """Cores that this process may use (fewer than the machine's in a container or under taskset)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> tuple[str, list[str]]:
    """The processor's name and those of its features that make matrix multiplication fast."""
    if sys.platform == "darwin":
        return _run("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine(), []
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine(), []
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return fields.get("model name") or platform.machine(), [word for word in FEATURES if word in flags]


def memory() -> tuple[int, int]:
    """Bytes of main memory in all, and free for use; zeros where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if len(line.split()) > 1}
        total, free = kilobytes["MemTotal"] * 1024, kilobytes["MemAvailable"] * 1024
    except (OSError, KeyError, ValueError):
        total = int(_run("sysctl", "-n", "hw.memsize") or 0)
        return total, 0
    return _within_cgroup(total, free)


def _within_cgroup(total: int, free: int) -> tuple[int, int]:
    """The container's limit where it is the smaller one."""
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return total, free
    return min(total, limit), min(free, max(0, limit - used))


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
