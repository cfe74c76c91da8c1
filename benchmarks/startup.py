"""Claim: `gpt2 --help` and every command's --help answer in under 0.4 s. Medians of processes started from nothing.

`python benchmarks/startup.py [ROUNDS]`, or `make bench`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from gpt2.cli.main import COMMANDS

LIMIT = 0.4  # seconds


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    lines = [["--help"], *([name, "--help"] for name in COMMANDS)]
    times: dict[str, list[float]] = {" ".join(words): [] for words in lines}
    for _ in range(rounds):  # the lines in turn, so that a busy moment falls on all of them
        for words in lines:
            times[" ".join(words)].append(seconds(words))
    print("| command | median, s | best, s | worst, s |\n| --- | --- | --- | --- |")
    for line, found in times.items():
        print(f"| gpt2 {line} | {statistics.median(found):.3f} | {min(found):.3f} | {max(found):.3f} |")
    slow = [line for line, found in times.items() if statistics.median(found) >= LIMIT]
    if slow:
        sys.exit(f"over {LIMIT} s: {', '.join(slow)}")


def seconds(words: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "gpt2", *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
