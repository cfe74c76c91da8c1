"""Nats per character on tinyshakespeare in the wall time of nanoGPT's README recipe for a processor.

Runs a plain loop of nanoGPT's shape and steps (plain_loop.py) and ours alternately. Ours gets the time that the plain
loop took, start-up included and the last evaluation not, like it. Every held-out character is scored once.

    python benchmarks/char.py --text tinyshakespeare.txt --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
STARTUP_AND_END = 13.0  # seconds of ours outside of the training budget: imports, data, last evaluation, report


def run_plain(text: Path) -> tuple[float, float]:
    """(seconds until trained, nats per character) of the plain loop."""
    begin = time.time()
    out = subprocess.run(
        [sys.executable, str(HERE / "plain_loop.py"), str(text)], check=True, capture_output=True, text=True
    ).stdout
    result = json.loads(out.splitlines()[-1])
    return result["trained_at"] - begin, result["val_loss"]


def run_ours(data: Path, out: Path, seconds: float) -> tuple[float, float, int]:
    """(seconds of the whole process, nats per character, characters scored) of `gpt2 train`."""
    begin = time.time()
    command = [sys.executable, "-m", "gpt2", "train", str(HERE.parent / "configs" / "shakespeare_char.toml")]
    command += ["--data", str(data), "--out", str(out), "--max_seconds", f"{seconds:.1f}"]
    subprocess.run(command, check=True, capture_output=True)
    wall = time.time() - begin
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [line for line in lines if "val/loss" in line][-1]
    return wall, last["val/loss"], last["val_targets"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    assets = Path(os.environ.get("GPT2_ASSETS", HERE.parent.parent / "shared" / "assets"))
    parser.add_argument("--text", type=Path, default=assets / "text" / "tinyshakespeare.txt")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows: list[tuple[float, float, float, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        prepare = ["prepare", str(args.text), "--out", str(data), "--tokenizer", "char"]
        subprocess.run([sys.executable, "-m", "gpt2", *prepare], check=True, capture_output=True)
        for index in range(args.rounds):
            plain_seconds, plain_loss = run_plain(args.text)
            budget = plain_seconds - STARTUP_AND_END
            wall, loss, scored = run_ours(data, Path(scratch) / f"run{index}", budget)
            rows.append((plain_seconds, plain_loss, wall, loss))
            print(
                f"round {index + 1}: plain loop {plain_seconds:.1f} s, {plain_loss:.4f} nats per character; "
                f"gpt2 {wall:.1f} s all in all, {loss:.4f} over {scored:,} characters",
                flush=True,
            )
    plain_seconds, plain_loss, wall, loss = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"\n| medians of {args.rounds} | seconds | nats per character |\n| --- | --- | --- |")
    print(f"| plain loop in nanoGPT's manner (last evaluation not counted) | {plain_seconds:.1f} | {plain_loss:.4f} |")
    print(f"| gpt2 train (everything counted) | {wall:.1f} | {loss:.4f} |")
    print(f"| ratio | {wall / plain_seconds:.2f} | {loss / plain_loss:.3f} |")


if __name__ == "__main__":
    main()
