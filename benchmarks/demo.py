"""The demo's claim: bits per byte on held-out files of Python's library, beside `xz -9e`, after 150 s of training.

Runs `gpt2 demo` from nothing in scratch folders and reads what it measured.

    python benchmarks/demo.py --rounds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run_demo(folder: Path) -> dict[str, float]:
    """Seconds of the whole command and of its training, bits per byte, tokens trained on."""
    begin = time.time()
    subprocess.run([sys.executable, "-m", "gpt2", "demo"], cwd=folder, check=True, capture_output=True)
    lines = (folder / "gpt2-demo" / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [json.loads(line) for line in lines]
    last_train = [line for line in metrics if "elapsed" in line][-1]
    last_val = [line for line in metrics if "val/bits_per_byte" in line][-1]
    return {
        "whole command (s)": time.time() - begin,
        "training steps (s)": last_train["elapsed"],
        "tokens trained on": last_train["tokens"],
        "held-out tokens": last_val["val_targets"],
        "bits per byte": last_val["val/bits_per_byte"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rounds: list[dict[str, float]] = []
    for index in range(args.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            rounds.append(run_demo(Path(scratch)))
        print(f"round {index + 1}: " + ", ".join(f"{k} {v:,.3f}" for k, v in rounds[-1].items()), flush=True)
    print(f"\n| medians of {args.rounds}, Python {sys.version.split()[0]} | |\n| --- | --- |")
    for key in rounds[0]:
        print(f"| {key} | {statistics.median(r[key] for r in rounds):,.3f} |")


if __name__ == "__main__":
    main()
