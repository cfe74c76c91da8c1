"""Where a command runs: device, number format, rank, seed. Decided once, passed along, never at import."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt2.errors import UserError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Runtime:
    """Device and number format by name, and this process's place among its peers."""

    device: str = "cpu"
    dtype: str = "float32"
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @classmethod
    def detect(cls, device: str = "auto", dtype: str = "auto") -> Runtime:
        """Take what the user named, or the best that is here; raise UserError for what is not."""
        device = pick_device(device)
        return cls(
            device=device,
            dtype=pick_dtype(dtype, device),
            rank=int(os.environ.get("RANK", 0)),
            local_rank=int(os.environ.get("LOCAL_RANK", 0)),
            world_size=int(os.environ.get("WORLD_SIZE", 1)),
        )


def pick_device(name: str = "auto") -> str:
    """`auto` means cuda, else mps, else cpu. A device that is not here is refused.

    torch is asked only where there may be something to find: its import takes longer than a short text.
    """
    if name == "cpu" or (name == "auto" and "torch" not in sys.modules and not may_have_gpu()):
        return "cpu"
    import torch

    have_cuda, have_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if have_cuda else "mps" if have_mps else "cpu"
    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device {name}: unknown; choose auto, cpu, cuda, cuda:N or mps")
    if (kind == "cuda" and not have_cuda) or (kind == "mps" and not have_mps):
        raise UserError(f"--device {name}: none found on this machine; use --device cpu (gpt2 doctor says more)")
    if kind == "cuda" and ":" in name:
        index = name.partition(":")[2]
        if not index.isdigit() or int(index) >= torch.cuda.device_count():
            raise UserError(f"--device {name}: this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return name


def may_have_gpu() -> bool:
    """Whether torch could find a GPU: a driver of NVIDIA or AMD, or macOS."""
    places = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/nvidia0", "/dev/nvmap", "/dev/dxg", "/dev/kfd")
    return sys.platform == "darwin" or any(map(os.path.exists, places)) or bool(shutil.which("nvidia-smi"))


def check_jit() -> None:
    """ImportError where numba may not compile: the kernels are no Python that could run as it stands."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        raise ImportError("NUMBA_DISABLE_JIT is set")


def pick_dtype(name: str, device: str) -> str:
    """`auto` means bfloat16 where the hardware multiplies it, else float16 on an older GPU, else float32."""
    names = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    name = names.get(name, name)
    if name != "auto":
        if name not in DTYPES:
            raise UserError(f"--dtype {name}: unknown; choose auto, {', '.join(DTYPES)}")
        return name
    import torch

    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float16"
    return "bfloat16" if device == "cpu" and cpu_multiplies_bf16() else "float32"


def cpu_multiplies_bf16() -> bool:
    """Whether this processor has bf16 matrix instructions (AVX-512-BF16 or AMX), not only their emulation."""
    import torch

    capability = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capability:
        return bool(capability.get("avx512_bf16") or capability.get("amx_bf16"))
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check()) if check else False


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch. Whoever needs an independent stream makes a generator of its own."""
    import random

    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def say(message: str) -> None:
    """Talk to the person: stderr, never stdout; of several processes only the main one does.

    Neither a console that is not UTF-8 nor one that has gone is an error.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    with contextlib.suppress(OSError, ValueError):
        try:
            print(message, file=sys.stderr, flush=True)
        except UnicodeEncodeError:
            encoding = sys.stderr.encoding or "ascii"
            print(message.encode(encoding, "replace").decode(encoding), file=sys.stderr, flush=True)
