"""Claims: attention over a band is 4 times as fast as SDPA with the same mask, and twice as fast as dense causal SDPA,
forward and backward, in float32 and bfloat16; its memory grows with the length and not with its square.

The attention core alone (q, k, v in, output out), as training calls it: 12 heads of 64, one row of 4,096 tokens, a band
of 256. Medians of alternating rounds; all ways of a round are measured within seconds of each other.

    python benchmarks/banded.py                # speed, about 2 minutes on two cores
    python benchmarks/banded.py --only memory  # most that a process ever held, and docs/images/banded_memory.svg
    python benchmarks/banded.py --device cuda --length 16384  # FlexAttention; the claim there: 3 times dense
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2.kernels import ops
from gpt2.kernels.patterns import Pattern

HEADS, WIDTH, BAND, LENGTH = 12, 64, 256, 4096
STRIDE = 64  # of the strided form, which is shown beside
LENGTHS = (1024, 2048, 4096, 8192, 16384)
MOST_MASKED = 8192  # tokens whose square SDPA with a mask is asked for
WANTED = {"SDPA with the mask": 4.0, "SDPA, dense and causal": 2.0}
PLOT = Path(__file__).parent.parent / "docs" / "images" / "banded_memory.svg"
Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def ways(length: int, device: str) -> dict[str, Way]:
    """What is compared: each (q, k, v) -> output."""
    mask = Pattern(BAND).mask(length, torch.device(device)) if length <= MOST_MASKED or device != "cpu" else None
    band, strided = Pattern(BAND), Pattern(0, STRIDE)
    return {
        "banded": lambda q, k, v: ops.causal_attention(q, k, v, 0.0, band),
        "SDPA with the mask": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        "SDPA, dense and causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "dense, as a dense layer does it": lambda q, k, v: ops.causal_attention(q, k, v, 0.0),
        f"strided by {STRIDE}": lambda q, k, v: ops.causal_attention(q, k, v, 0.0, strided),
    }


def inputs(length: int, dtype: str, device: str) -> list[Tensor]:
    """q, k, v as c_attn leaves them, heads of a token side by side; and a gradient of the output's shape."""
    dice = torch.Generator(device).manual_seed(0)
    shape = (1, length, HEADS, WIDTH)
    made = [torch.randn(shape, generator=dice, device=device).to(getattr(torch, dtype)) for _ in range(4)]
    return [part.transpose(1, 2).requires_grad_(place < 3) for place, part in enumerate(made)]


def seconds(way: Way, tensors: list[Tensor], backward: bool) -> float:
    """One pass."""
    *leaves, grad = tensors
    _wait(grad)
    start = time.perf_counter()
    out = way(*leaves)
    if backward:
        torch.autograd.grad(out, leaves, grad)
    _wait(grad)
    return time.perf_counter() - start


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def speed(length: int, device: str, dtype: str, rounds: int) -> str:
    """Milliseconds of each way and how many times a band's they are; a table."""
    tensors = inputs(length, dtype, device)
    found: dict[tuple[str, bool], list[float]] = {}
    for number in range(rounds + 1):  # the first compiles and maps memory
        for name, way in list(ways(length, device).items())[:: 1 if number % 2 == 0 else -1]:
            for backward in (False, True):
                taken = seconds(way, tensors, backward)
                if number:
                    found.setdefault((name, backward), []).append(taken)
    medians = {key: statistics.median(times) for key, times in found.items()}
    lines = [
        f"| {dtype}, T = {length:,} | forward, ms | ratio | forward + backward, ms | ratio | |",
        "| --- " * 6 + "|",
    ]
    for name in ways(0, device):
        forward, both = medians[name, False], medians[name, True]
        ratios = forward / medians["banded", False], both / medians["banded", True]
        wanted = WANTED.get(name)
        verdict = "" if wanted is None else f"{wanted:g} wanted: {'held' if ratios[1] >= wanted else 'missed'}"
        lines.append(
            f"| {name} | {forward * 1e3:.1f} | {ratios[0]:.2f} | {both * 1e3:.1f} | {ratios[1]:.2f} | {verdict} |"
        )
    return "\n".join(lines)


def memory(dtypes: Sequence[str]) -> str:
    """MB that forward and backward add to a process of their own; a table, and the plot."""
    found: dict[str, dict[int, float]] = {}
    for dtype in dtypes:
        for way in ("banded", "SDPA with the mask", "SDPA, dense and causal"):
            for length in LENGTHS:
                if way != "SDPA with the mask" or length <= MOST_MASKED:
                    found.setdefault(f"{way}, {dtype}", {})[length] = added(way, dtype, length)
    lines = ["| MB added by forward + backward, T = | " + " | ".join(f"{length:,}" for length in LENGTHS) + " |"]
    lines.append("| --- " * (len(LENGTHS) + 1) + "|")
    for name, row in found.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[t]:,.0f}" if t in row else "" for t in LENGTHS) + " |")
    draw(found)
    return "\n".join(lines)


def added(way: str, dtype: str, length: int) -> float:
    """In a process of its own, as the most that one ever held never falls."""
    command = [sys.executable, __file__, "--child", way, "--dtype", dtype, "--length", str(length)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout)) / 1e6


def child(way: str, dtype: str, length: int) -> None:
    """Bytes that a pass adds at most to what the process held before; a short row first, for what is loaded once."""
    ops.have_kernels()
    for size in (128, length):
        tensors = inputs(size, dtype, "cpu")
        known = ways(size, "cpu")
        Path("/proc/self/clear_refs").write_text("5")  # the mask took more while it was made: forget that peak
        before = resident()
        seconds(known[way], tensors, backward=True)
    print(json.dumps(most() - before))


def resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def most() -> int:
    """The most that it ever had there."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def draw(found: dict[str, dict[int, float]]) -> None:
    """Both axes logarithmic: a line of slope 1 is linear."""
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "gpt2", "svg.fonttype": "none"})
    colours = {"banded": "#2f6f9f", "SDPA with the mask": "#d9722b", "SDPA, dense and causal": "#7a7a85"}
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for name, row in found.items():
        way, _, dtype = name.rpartition(", ")
        style = {"linestyle": "-" if dtype == "float32" else "--", "marker": "o", "markersize": 3.5}
        axes.plot(list(row), list(row.values()), color=colours[way], label=name, **style)  # type: ignore[arg-type]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("tokens in a row")
    axes.set_ylabel("MB added by forward + backward")
    axes.set_title(f"Attention alone: {HEADS} heads of {WIDTH}, a band of {BAND}", fontsize=10)
    axes.grid(True, color="#e4e4e8", linewidth=0.6)
    axes.legend(fontsize=7)
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["speed", "memory"], default="speed")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.dtype, options.length)
        return
    dtypes = [options.dtype] if options.dtype else ["float32", "bfloat16"]
    if options.only == "memory":
        print(memory(dtypes))
    else:
        for dtype in dtypes:
            print(speed(options.length, options.device, dtype, options.rounds), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
