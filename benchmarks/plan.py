"""Claim: `gpt2 plan` predicts a training process's peak memory within 10 %.

Trains a few steps of each case in a process of its own, checkpoints and evaluations included, and compares the most
that the process ever had in memory with the prediction made before.

    python benchmarks/plan.py                 # 12M and 124M, bfloat16 and float32, AdamW and Muon: about 15 minutes
    python benchmarks/plan.py --only 12M
    python benchmarks/plan.py --device cuda   # most that torch's allocator ever held, beside the prediction for it
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.data.shards import Meta, SplitMeta
from gpt2.model.memory import Pass, TrainingBytes, training_bytes
from gpt2.runtime import pick_dtype
from gpt2.train.config import TrainConfig, compose

WITHIN = 0.10
STEPS, SAVE_EVERY = 4, 2  # so that the third step runs beside the writing of a checkpoint
HELD_OUT = 20_000  # tokens


@dataclass(frozen=True)
class Case:
    """One run: a shape, rows at a time, number format, optimizer, micro-steps."""

    name: str
    model: dict[str, Any]
    rows: int
    dtype: str = "bfloat16"
    optimizer: str = "adamw"
    device: str = "cpu"
    micro_steps: int = 1
    recompute: str = "none"

    def settings(self, folder: Path) -> TrainConfig:
        """The run's settings, with its tokens in `folder`."""
        length = self.model["context_length"]
        return compose(
            model=self.model,
            data=str(folder / "data"),
            out=str(folder / "run"),
            batch_tokens=self.rows * self.micro_steps * length,
            micro_batch_size=self.rows,
            max_steps=STEPS,
            save_every=SAVE_EVERY,
            eval_tokens=HELD_OUT,
            device=self.device,
            dtype=self.dtype,
            optimizer=self.optimizer,
            recompute=self.recompute,
        )


SMALL = {"n_layer": 6, "n_head": 6, "n_embd": 384, "context_length": 256, "vocab_size": 4096}
LARGE = {"n_layer": 12, "n_head": 12, "n_embd": 768, "context_length": 1024, "vocab_size": 50257}
CASES = [
    Case(name, model, rows, dtype, optimizer)
    for name, model, rows in (("12M", SMALL, 16), ("124M", LARGE, 2), ("124M", LARGE, 4))
    for dtype in ("bfloat16", "float32")
    for optimizer in ("adamw", "muon")
]
CASES += [
    Case(name, model, rows, dtype, micro_steps=steps)
    for name, model, rows, steps in (("12M", SMALL, 4, 4), ("124M", LARGE, 1, 2))
    for dtype in ("bfloat16", "float32")
]


def predicted(case: Case) -> TrainingBytes:
    """What the memory model says of a case."""
    config = compose(model=case.model).model
    step = Pass(case.rows, 0, case.dtype, case.device, case.recompute, micro_steps=case.micro_steps)  # type: ignore[arg-type]
    return training_bytes(config, step, case.optimizer, saving=True)


def measured(case: Case) -> int:
    """Bytes that a process doing nothing but this run had in memory at most."""
    with tempfile.TemporaryDirectory(prefix="gpt2-plan-") as folder:
        command = [sys.executable, __file__, "--child", json.dumps(asdict(case)), folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def child(case: Case, folder: Path) -> None:
    """Train here, and print the most that was held."""
    write_tokens(folder / "data", case.model["vocab_size"], case)
    config = case.settings(folder)
    from gpt2.train.pretrain import pretrain

    pretrain(config, quiet=True)
    if case.device == "cuda":
        import torch

        print(torch.cuda.max_memory_reserved())
    else:
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(most if sys.platform == "darwin" else most * 1024)


def write_tokens(folder: Path, vocabulary: int, case: Case) -> None:
    """As many random tokens as the run reads."""
    folder.mkdir(parents=True)
    count = (STEPS + 1) * case.rows * case.micro_steps * case.model["context_length"] + 1
    ids = np.random.default_rng(0).integers(0, vocabulary, count + HELD_OUT).astype("<u2")
    (folder / "train.bin").write_bytes(ids[:count].tobytes())
    (folder / "val.bin").write_bytes(ids[count:].tobytes())
    train, val = SplitMeta(("train.bin",), count, 1, 2 * count, None), SplitMeta(("val.bin",), HELD_OUT, 1, 1, None)
    Meta(vocab_size=vocabulary, train=train, val=val).save(folder)


def row(case: Case) -> tuple[str, bool]:
    """A line of the table, and whether the prediction holds."""
    guess, found = predicted(case), measured(case)
    total = guess.total - (guess.base if case.device == "cuda" else 0)
    off = total / found - 1
    shape = f"{case.rows} x {case.model['context_length']:,}"
    times = f"{case.micro_steps} x " * (case.micro_steps > 1)
    cells = [case.name, f"{times}{shape}", case.dtype, case.optimizer, f"{total / 1e6:,.0f}", f"{found / 1e6:,.0f}"]
    return f"| {' | '.join(cells)} | {off:+.1%} |", abs(off) <= WITHIN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="cases whose name this is")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="else bfloat16 and float32; float32 alone where bfloat16 is only emulated",
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(Case(**json.loads(args.child[0])), Path(args.child[1]))
        return
    fast = pick_dtype("auto", args.device)
    dtypes = [args.dtype] if args.dtype else ["bfloat16", "float32"] if fast == "bfloat16" else ["float32"]
    print("| model | micro-batch | dtype | optimizer | predicted MB | measured MB | off |")
    print("| --- " * 7 + "|")
    held = True
    for case in CASES:
        if args.only in (None, case.name) and case.dtype in dtypes:
            line, holds = row(replace(case, device=args.device))
            held &= holds
            print(line, flush=True)
    sys.exit(0 if held else f"not all within {WITHIN:.0%}")


if __name__ == "__main__":
    main()
