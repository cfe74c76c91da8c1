"""Claim: training 1.25 times as fast as the best plain PyTorch loop on a processor (a GPU: 1.2), to the same loss.

Ours (`gpt2 train --optimizer adamw`: its own weights, optimizer, take_step) against a plain loop in nanoGPT's manner
in four configurations (autocast or bfloat16 weights, compiled or not; peers/train_plain.py) and transformers (bfloat16,
eager and compiled); on a processor without bfloat16 instructions all of them in float32. Same shape, first weights,
rows, AdamW, allocator and threads; each side is a process of its own, which sleeps between its turns (`--apart`, as on
a GPU, where they would not fit beside each other: it is started and warmed up anew for each turn). Turns alternate, the
order is turned round every time, medians count. A side that dies, for want of memory, is left out and named.

    loss     ours, the fastest plain configuration and the fastest that has float32 masters, as ours and autocast have,
             go on to 50 steps: mean of the last five losses; ours must be that of the latter and not above the former
    MFU      (6 (params - wpe) + 6 n_layer n_head head_dim T) FLOPs a token over the peak: the maker's, or measured
    memory   resident peak over two steps at twice the rows (GPU: allocated, at these rows), each side alone, allocator
             as it comes (wanted: 60 % of autocast, nanoGPT's own; of autocast compiled and bfloat16 weights shown)

    python benchmarks/train.py                         # processor: 124M (2 x 1,024) and 12M (16 x 256)
    python benchmarks/train.py --sizes 12M --rounds 5
    python benchmarks/train.py --device cuda           # 124M at 64 x 1,024; then 355M, 774M and 1558M, 20 steps each
    python benchmarks/train.py --quick                 # a minute, for tests: a tiny model, two rounds

Compilations come first and are not timed. On a processor `--allocator keep` (both sides: glibc keeps freed memory, in
huge pages) is the default; `--allocator default` leaves both as they are. Ours sets the first half of it by itself.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from peers.train_data import write_tokens
from peers.train_plain import Shape
from peers.train_side import Side, Visitor

from gpt2.hardware import cores, processor
from gpt2.kernels.peak import device_peak
from gpt2.model.sizes import training_flops_per_token
from gpt2.runtime import pick_dtype, say

SHAPES = {
    "tiny": Shape(2, 2, 64, 256, 64, 4),
    "12M": Shape(6, 6, 384, 4096, 256, 16),
    # A rate for steps of 2,048 tokens: at 6e-4 the loss leaps, in both, and the plain loop is 1.7 % from itself.
    "124M": Shape(12, 12, 768, 50304, 1024, 2, learning_rate=1e-4),
    "355M": Shape(24, 16, 1024, 50304, 1024, 1),
    "774M": Shape(36, 20, 1280, 50304, 1024, 1),
    "1558M": Shape(48, 25, 1600, 50304, 1024, 1),
}
GPU_ROWS = {"12M": 256, "124M": 64, "355M": 32, "774M": 16, "1558M": 8}
PLAIN = {
    "bfloat16": ("autocast", "autocast-compiled", "bf16", "bf16-compiled"),
    "float32": ("float32", "float32-compiled"),
}
OTHERS = ("hf", "hf-compiled")
NAMES = {
    "ours": "gpt2 (ours)",
    "autocast": "plain loop, autocast",
    "autocast-compiled": "plain loop, autocast, compiled",
    "bf16": "plain loop, bfloat16 weights",
    "bf16-compiled": "plain loop, bfloat16 weights, compiled",
    "float32": "plain loop, float32",
    "float32-compiled": "plain loop, float32, compiled",
    "hf": "transformers",
    "hf-compiled": "transformers, compiled",
}
LOSS_STEPS, SAME_LOSS = 50, 0.005
WARM_UP = 4  # steps before the first turn, the same for every side
FASTER = {"cpu": 1.25, "cuda": 1.2}
FASTER_THAN_HF = 1.5  # on a GPU
MASTERS = ("autocast", "float32")  # plain configurations whose weights move in float32, as ours do
LESS_MEMORY = 0.6  # of the plain loop that is as nanoGPT has it
LARGER = ("355M", "774M", "1558M")
LARGER_STEPS = 20


def main() -> None:
    args = arguments()
    peak = device_peak(args.device, args.dtype) / 1e12
    say(f"{processor()[0]}, {cores()} threads; peak {peak:.3f} TFLOP/s in {args.dtype}")
    if args.device == "cpu":
        say("no GPU is used: --device cuda measures there, where there is one")
    with tempfile.TemporaryDirectory() as scratch:
        missed = [size for size in args.sizes if not compare(size, Path(scratch), args)]
        for size in LARGER if args.device.startswith("cuda") and not args.quick else ():
            larger(size, Path(scratch), args)
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


def arguments() -> argparse.Namespace:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", default=None, help="124M,12M,...")
    parser.add_argument("--dtype", choices=list(PLAIN), help="else what the device multiplies fast")
    parser.add_argument("--sides", default=None, help="else all of the dtype")
    parser.add_argument("--rounds", type=int, default=None, help="else 5, on a GPU 3")
    parser.add_argument("--apart", action="store_true", help="one side at a time, started anew for each turn")
    parser.add_argument("--steps", type=int, default=None, help="of a turn; else by the size")
    parser.add_argument("--only", default="speed,loss,memory")
    parser.add_argument("--allocator", choices=["keep", "default"], default="keep")
    parser.add_argument("--recompute", choices=["none", "selective", "full"], default="none")
    parser.add_argument("--fp8", action="store_true", help="ours with 8-bit products (GPUs that have them)")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: no GPU on this machine; leave it out to measure the processor")
    if args.fp8 and not args.device.startswith("cuda"):
        parser.error("--fp8: no processor multiplies 8-bit floats; leave it out")
    if args.fp8 and args.dtype not in (None, "bfloat16"):
        parser.error(f"--fp8 --dtype {args.dtype}: 8-bit products stand in for bfloat16 ones")
    if args.quick:
        args.rounds, args.steps, args.sizes = 2, 2, args.sizes or "tiny"
    on_gpu = args.device.startswith("cuda")
    args.rounds, args.apart = args.rounds or (3 if on_gpu else 5), args.apart or on_gpu
    args.sizes = (args.sizes or ("124M,12M" if args.device == "cpu" else "124M")).split(",")
    args.dtype = args.dtype or pick_dtype("auto", args.device)
    args.sides = args.sides.split(",") if args.sides else ["ours", *PLAIN[args.dtype], *OTHERS]
    return args


def shape_of(size: str, device: str) -> Shape:
    """The size's shape, with the rows that suit the device."""
    shape = SHAPES[size]
    return replace(shape, rows=GPU_ROWS[size]) if device.startswith("cuda") and size in GPU_ROWS else shape


def compare(size: str, scratch: Path, args: argparse.Namespace) -> bool:
    """The tables of one size; whether the claims hold."""
    shape = shape_of(size, args.device)
    data = write_tokens(scratch / f"{size}.npy", shape.vocab_size)
    held = True
    if "speed" in args.only:
        held = compare_speed(size, shape, data, args)
    if "memory" in args.only:
        twice = replace(shape, rows=shape.rows * (2 if args.device == "cpu" else 1))
        held &= compare_memory(size, twice, data, args)
    return held


def compare_speed(size: str, shape: Shape, data: Path, args: argparse.Namespace) -> bool:
    """Alternating turns, then the losses of ours and of the fastest plain configuration."""
    count = args.steps or (2 if size == "124M" else 4) * (1 if args.device == "cpu" else 5)
    sides = open_sides(args.sides, shape, data, args)
    try:
        rates = alternate(sides, shape, args.rounds, count)
        medians = {kind: statistics.median(values) for kind, values in rates.items()}
        report(size, shape, rates, medians, args)
        plain = [kind for kind in medians if kind in PLAIN[args.dtype]]
        best = max(plain, key=lambda kind: medians[kind], default=None)
        if best is None or "ours" not in medians:
            return "ours" not in args.sides or "ours" in medians
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates[best], strict=True))
        wanted = FASTER[args.device.partition(":")[0]]
        print(f"\nours / {NAMES[best]}, median of {args.rounds} pairs: {ratio:.3f} (wanted: {wanted})", flush=True)
        held = ratio >= wanted or args.quick
        hf = [statistics.median(rates["ours"]) / medians[kind] for kind in OTHERS if kind in medians]
        if hf and not args.device.startswith("cpu"):
            print(f"ours / transformers: {min(hf):.2f} (wanted: {FASTER_THAN_HF})", flush=True)
            held &= min(hf) >= FASTER_THAN_HF or args.quick
        if "loss" in args.only:
            exact = [kind for kind in plain if kind.startswith(MASTERS)]
            others = {best: False} | dict.fromkeys(sorted(exact, key=lambda kind: medians[kind])[-1:], True)
            held &= same_loss(sides, others, 5 if args.quick else LOSS_STEPS)
        return held
    finally:
        for side in sides.values():
            side.close()


def open_sides(kinds: list[str], shape: Shape, data: Path, args: argparse.Namespace) -> dict[str, Side | Visitor]:
    """A process for each, one after another, after WARM_UP steps: kernels are compiled, memory is mapped.

    With hardly a page fault left the third step may still be slower than those to come: the host has its pages too.
    """
    sides: dict[str, Side | Visitor] = {}
    for kind in kinds:
        options = options_of(kind, args)
        if args.apart:
            sides[kind] = Visitor(kind, shape, args.device, data, options, args.allocator, WARM_UP)
            continue
        side = Side(kind, shape, args.device, data, options, args.allocator)
        begin = side("steps", WARM_UP)["seconds"]
        say(f"{NAMES[kind]}: first step {begin[0]:.1f} s, then {', '.join(f'{seconds:.2f}' for seconds in begin[1:])}")
        sides[kind] = side
    return sides


def options_of(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """What the side's process is told beside the shape."""
    dtype = {"dtype": args.dtype} if kind in ("ours", *OTHERS) else {}
    return dtype | ({"recompute": args.recompute, "fp8": args.fp8} if kind == "ours" else {})


def alternate(sides: dict[str, Side | Visitor], shape: Shape, rounds: int, count: int) -> dict[str, list[float]]:
    """Tokens a second of each turn of each side; one that dies is left out from there on."""
    rates: dict[str, list[float]] = {kind: [] for kind in sides}
    for number in range(rounds):
        for kind in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            try:
                seconds = sides[kind]("steps", count)["seconds"]
            except RuntimeError as error:
                print(f"{NAMES[kind]}: left out ({error})", flush=True)
                sides.pop(kind).close()
                del rates[kind]
                continue
            rates[kind].append(shape.rows * shape.length * count / sum(seconds))
        say(f"round {number + 1}: " + ", ".join(f"{kind} {values[-1]:,.0f}" for kind, values in rates.items()))
    return rates


def report(
    size: str, shape: Shape, rates: dict[str, list[float]], medians: dict[str, float], args: argparse.Namespace
) -> None:
    """The table of speeds."""
    from peers.train_ours import model_config

    flops, peak = training_flops_per_token(model_config(shape)), device_peak(args.device, args.dtype)
    print(f"\n{size}: {shape.rows} x {shape.length:,}, vocabulary {shape.vocab_size:,}, {args.device}, ", end="")
    digits = f"{args.dtype}{' (ours: products in 8 bits; MFU of the peak of 16)' if args.fp8 else ''}"
    print(f"{digits}, allocator {args.allocator}; medians of {args.rounds} alternating rounds\n")
    print("| | tokens/s | lowest to highest | MFU | ours / it |\n| --- | --- | --- | --- | --- |")
    for kind, median in medians.items():
        spread = f"{min(rates[kind]):,.0f} to {max(rates[kind]):,.0f}"
        pairs = zip(rates["ours"], rates[kind], strict=True) if "ours" in rates else []
        ratio = statistics.median([a / b for a, b in pairs] or [float("nan")])
        print(f"| {NAMES[kind]} | {median:,.0f} | {spread} | {100 * median * flops / peak:.1f} % | {ratio:.2f} |")
    sys.stdout.flush()


def same_loss(sides: dict[str, Side | Visitor], others: dict[str, bool], steps: int) -> bool:
    """All go on to so many steps; the means of their last five losses, and whether ours is as it should be.

    `others` says whether its loss must be ours, or may be higher: weights in bfloat16 lose what a step adds to them.
    """
    ours, held = statistics.fmean(sides["ours"].losses(steps)[-5:]), True
    print(f"loss after {steps} steps (mean of five): ours {ours:.4f}", flush=True)
    for kind, same in others.items():
        plain = statistics.fmean(sides[kind].losses(steps)[-5:])
        apart = ours / plain - 1
        print(f"{NAMES[kind]}: {plain:.4f}, ours {100 * apart:+.2f} % ({'the same' if same else 'no more'} wanted)")
        held &= apart <= SAME_LOSS and (apart >= -SAME_LOSS or not same)
    return held


def compare_memory(size: str, shape: Shape, data: Path, args: argparse.Namespace) -> bool:
    """Peak memory of each side at these rows, in a process of its own; ours also with its ways of saving memory."""
    ways: dict[str, tuple[str, dict[str, Any]]] = {NAMES[kind]: (kind, {}) for kind in args.sides if kind not in OTHERS}
    if "ours" in args.sides:
        ways["gpt2, one row at a time"] = ("ours", {"micro": 1})
        ways["gpt2, recompute full"] = ("ours", {"recompute": "full"})
    peaks: dict[str, float] = {}
    for name, (kind, options) in ways.items():
        side = Side(kind, shape, args.device, data, options_of(kind, args) | options, "default")
        try:
            peaks[name] = side("peak", 2) / 1e9
            say(f"{name}: {peaks[name]:.2f} GB")
        except RuntimeError as error:
            print(f"{name}: left out ({error})", flush=True)
        side.close()
    plain = {name: peaks[name] for name, (kind, _) in ways.items() if kind != "ours" and name in peaks}
    print(f"\n{size}: peak memory at {shape.rows} x {shape.length:,}, GB, and as a share of each plain loop's\n")
    print(f"| | GB | {' | '.join(plain)} |\n{'| --- ' * (2 + len(plain))}|")
    for name, peak in peaks.items():
        shares = (f"{100 * peak / other:.0f} %" for other in plain.values())
        print(f"| {name} | {peak:.2f} | {' | '.join(shares)} |", flush=True)
    as_nano = next((peaks[NAMES[kind]] for kind in MASTERS if NAMES[kind] in peaks), None)
    if size != "124M" or args.quick or as_nano is None or "ours" not in args.sides:
        return True
    share = peaks.get(NAMES["ours"], float("inf")) / as_nano
    print(f"\nours: {share:.0%} of the plain loop as nanoGPT has it (wanted: {LESS_MEMORY:.0%})", flush=True)
    return share <= LESS_MEMORY


def larger(size: str, scratch: Path, args: argparse.Namespace) -> None:
    """A line for a size that only we train here: 20 steps, the first five left out."""
    from peers.train_ours import model_config

    shape = shape_of(size, args.device)
    data = write_tokens(scratch / "large.npy", shape.vocab_size)
    side = Side("ours", shape, args.device, data, options_of("ours", args), args.allocator)
    turn = side("steps", LARGER_STEPS)
    peak = side("peak", 2) / 1e9
    side.close()
    rate = shape.rows * shape.length / statistics.median(turn["seconds"][5:])
    mfu = rate * training_flops_per_token(model_config(shape)) / device_peak(args.device, args.dtype)
    bits = " in 8 bits" * args.fp8
    print(
        f"| {size}{bits}, {shape.rows} x {shape.length:,} | {rate:,.0f} tokens/s | MFU {100 * mfu:.1f} % | "
        f"{peak:.1f} GB | loss {turn['losses'][0]:.2f} to {turn['losses'][-1]:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
