"""What the hardware can do at best: memory bandwidth and matrix-multiply peaks, from a table or measured.

Speeds are reported as a share of these limits, or of our own products where they are the faster (kernels/peak.py).
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpt2.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Gpu:
    """What one card can do and costs.

    `peak`: dense FLOP/s of 16-bit matrix multiplication with 32-bit sums, from the makers' data sheets (no sparsity);
    bfloat16, but for V100 and T4, which have float16 only. `memory`: GiB that the driver shows. `price`: dollars an
    hour on demand, None where no list was read; `source` says whose list.
    """

    name: str
    peak: float
    memory: float
    price: float | None = None
    source: str = ""

    @property
    def memory_bytes(self) -> int:
        return int(self.memory * 2**30)

    @property
    def has_bfloat16(self) -> bool:
        """Whether its matrix units know bfloat16; else they have float16 only."""
        return not self.name.startswith(("V100", "T4"))

    def peak_in(self, dtype: str) -> float:
        """FLOP/s in a number format: of float32 as TF32, as training multiplies it, half of bfloat16's where there is.

        UserError where no such figure is known.
        """
        if dtype != "float32":
            return self.peak
        if not self.has_bfloat16 or self.name in NO_TF32:
            raise UserError(f"--dtype float32: how fast a {self.name} multiplies it is not known here; leave it out")
        return self.peak / 2


NO_TF32 = ("MI355X", "MI250X")  # AMD's that know bfloat16 but have no such units

RUNPOD = "RunPod's list, March 2026"
LAMBDA = "Lambda's list, May 2026"
MODAL = "Modal's list, May 2026"
TENSORWAVE = "TensorWave's list, May 2026"

# The first name found in the device's own name counts, so longer ones stand before shorter ones.
GPUS: tuple[Gpu, ...] = (
    Gpu("GB200", 2500e12, 185.0),
    Gpu("B200", 2250e12, 179.0, 5.98, RUNPOD),
    Gpu("H200", 989e12, 140.4, 3.59, RUNPOD),
    Gpu("GH200", 989e12, 95.6),
    Gpu("H100 PCIe", 756e12, 79.6, 1.99, RUNPOD),
    Gpu("H100 NVL", 835e12, 93.6),
    Gpu("H100", 989e12, 79.6, 2.69, RUNPOD),
    Gpu("H800", 989e12, 79.6),
    Gpu("H20", 148e12, 95.6),
    Gpu("A100 40GB", 312e12, 39.6, 1.48, LAMBDA),
    Gpu("A100", 312e12, 79.2, 1.39, RUNPOD),
    Gpu("A800", 312e12, 79.2),
    Gpu("A40", 150e12, 44.9),
    Gpu("A30", 165e12, 24.0),
    Gpu("A10G", 70e12, 22.5),
    Gpu("A10", 125e12, 22.5, 0.86, LAMBDA),
    Gpu("L40S", 362e12, 44.9, 0.79, RUNPOD),
    Gpu("L40", 181e12, 44.9, 0.69, RUNPOD),
    Gpu("L4", 121e12, 22.5, 0.44, RUNPOD),
    Gpu("V100 32GB", 125e12, 31.7),
    Gpu("V100", 125e12, 15.8),
    Gpu("T4", 65e12, 15.0, 0.59, MODAL),
    Gpu("RTX 5090", 209e12, 31.8, 0.69, RUNPOD),
    Gpu("RTX 4090", 165e12, 24.0, 0.34, RUNPOD),
    Gpu("RTX 4080", 97e12, 16.0),
    Gpu("RTX 3090", 71e12, 24.0, 0.22, RUNPOD),
    Gpu("RTX 3080", 59e12, 10.0),
    Gpu("MI355X", 2500e12, 287.6),
    Gpu("MI325X", 1307e12, 255.9, 1.95, TENSORWAVE),
    Gpu("MI300X", 1307e12, 191.9, 1.50, TENSORWAVE),
    Gpu("MI250X", 191.5e12, 64.0),  # half a card, which is what the driver calls a device
)


def find_gpu(name: str) -> Gpu:
    """The card that a person names ("h100", "a100-40gb", "4090"), or a UserError with the list."""
    wanted = _plain(name).removeprefix("nvidia ").removeprefix("rtx ")
    for gpu in GPUS:
        if _plain(gpu.name).removeprefix("rtx ") == wanted:
            return gpu
    known = [gpu.name.lower().replace(" ", "-") for gpu in GPUS]
    raise UserError(f"--gpu {name}: unknown{did_you_mean(name.lower(), known)}; there are {', '.join(known)}")


def table_peak(name: str, dtype: str) -> float | None:
    """FLOP/s printed for a GPU of this name, or None where the table knows nothing of it (float32 included)."""
    words = _plain(name)
    if dtype not in ("bfloat16", "float16") or _VARIANTS.intersection(words.split()):
        return None
    return next((gpu.peak for gpu in GPUS if f" {_plain(gpu.name)} " in f" {words} "), None)


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("-", " ").replace("_", " ").split())


# Processor features that make matrix multiplication fast, as Linux spells them: x86, then ARM.
_X86 = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8")
FEATURES = (*_X86, "asimddp", "i8mm", "bf16", "sve", "sve2")
EMULATED = 4e9  # FLOP/s of a processor that are no more than a loop's
LOOK = 0.05  # seconds in which that is seen, beside other work too
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
    """FLOP/s of the best of several square matrix multiplications (1024 on a processor, 8192 on a GPU).

    A processor that only emulates the dtype is known by a small one: the large ones would take it seconds each.
    """
    if device != "cpu":
        return gemm_rate(device, dtype, 8192 if device.startswith("cuda") else 4096, seconds)
    if dtype != "float32" and (found := gemm_rate(device, dtype, 128, LOOK)) < EMULATED:
        return found
    return gemm_rate(device, dtype, 1024, seconds)


def gemm_rate(device: str, dtype: str, size: int, seconds: float) -> float:
    """FLOP/s of square matrix multiplications of one size."""
    import torch

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
