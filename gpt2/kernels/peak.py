"""What a device multiplies at best, whoever's products are the faster: what shares "of peak" are shares of."""

from __future__ import annotations

import functools

from gpt2 import hardware

SIZE = 1024


@functools.cache
def device_peak(device: str, dtype: str) -> float:
    """FLOP/s; hardware.device_peak, or what our own products reach where float32 trains by them and they are faster."""
    peak = hardware.device_peak(device, dtype)
    return max(peak, _own_rate()) if device == "cpu" and dtype == "float32" and _ours() else peak


def _ours() -> bool:
    import torch

    from gpt2.kernels.ops import have_kernels_for

    return have_kernels_for(torch.float32)


def _own_rate(seconds: float = 0.25) -> float:
    """FLOP/s of square products of ours."""
    import torch

    from gpt2.kernels.matmul import multiply_floats

    dice = torch.Generator().manual_seed(0)  # of its own: a resumed run must find the global one as it left it
    left = torch.randn(SIZE, SIZE, generator=dice)
    out = torch.empty_like(left)

    def multiply() -> None:
        multiply_floats(left, left, out)

    return 2 * SIZE**3 / hardware.best_time(multiply, seconds)
