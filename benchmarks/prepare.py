"""Speed and memory of `gpt2 prepare` with GPT-2's vocabulary, over documents of natural text.

    python benchmarks/prepare.py                        speed over 200 MB, beside tiktoken's own two-thread limit
    python benchmarks/prepare.py --memory               peak memory at 200 MB and at 2 GB

The text is made of the English lines of the test data (GPT2_ASSETS, default ../shared/assets), shuffled anew for
each document, so that no two documents are alike. Time is the whole command's, start-up included: reading twice,
hashing and splitting, encoding, writing. Memory is the process's peak resident set (it has threads, no children),
as wait4 reports it.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ASSETS = Path(os.environ.get("GPT2_ASSETS", Path(__file__).resolve().parents[2] / "shared" / "assets"))
TEXTS = ("text/austen-persuasion", "text/carroll-alice", "text/tinystories_sample", "text/tinyshakespeare")
MEGABYTE = 1_000_000


def documents(total_bytes: int, seed: int = 0) -> Iterator[str]:
    """Documents of 10 to 60 lines, about `total_bytes` in all."""
    names = [*TEXTS, "benchmarks/wikitext2_valid"]
    lines = [
        line for name in names for line in (ASSETS / f"{name}.txt").read_text("utf-8").splitlines() if line.strip()
    ]
    lines = [line for line in lines if line != "<|endoftext|>"]
    draw, made = random.Random(seed), 0
    while made < total_bytes:
        text = "\n".join(draw.choices(lines, k=draw.randint(10, 60)))
        made += len(text.encode())
        yield text


def write_corpus(folder: Path, total_bytes: int) -> int:
    """One file in TinyStories' form; returns its size."""
    path = folder / "corpus.txt"
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{text}\n<|endoftext|>\n" for text in documents(total_bytes))
    return path.stat().st_size


def run_prepare(folder: Path, workers: int) -> tuple[float, int]:
    """Seconds, and peak resident bytes."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        flags = ["--tokenizer", str(ASSETS / "gpt2-vocab"), "--workers", str(workers), "--out", out]
        begun = time.perf_counter()
        child = subprocess.Popen([sys.executable, "-m", "gpt2", "prepare", str(folder / "corpus.txt"), *flags])
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - begun
    if status:
        sys.exit("gpt2 prepare failed")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def tiktoken_limit(workers: int) -> float:
    """MB/s of tiktoken alone: text in memory, ids thrown away."""
    from gpt2.tokenizer.files import load_tokenizer

    tokenizer = load_tokenizer(ASSETS / "gpt2-vocab")
    texts = list(documents(30 * MEGABYTE))
    with ThreadPoolExecutor(workers) as pool:
        begun = time.perf_counter()
        for _ in pool.map(lambda batch: [tokenizer.encode_array(text) for text in batch], _batches(texts, 200)):
            pass
        return sum(len(text.encode()) for text in texts) / MEGABYTE / (time.perf_counter() - begun)


def _batches(texts: list[str], size: int) -> list[list[str]]:
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="measure peak memory at 200 MB and 2 GB")
    parser.add_argument("--repeat", type=int, default=3, help="runs for the speed, the best and the median are told")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--megabytes", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.memory:
            peaks = {}
            for megabytes in (arguments.megabytes, 10 * arguments.megabytes):
                write_corpus(folder, megabytes * MEGABYTE)
                seconds, peaks[megabytes] = run_prepare(folder, arguments.workers)
                print(f"{megabytes:,} MB: peak {peaks[megabytes] / MEGABYTE:,.1f} MB, {megabytes / seconds:.1f} MB/s")
            small, large = peaks.values()
            print(f"growth: {(large - small) / MEGABYTE:,.1f} MB (goal: at most 64)")
            return
        size = write_corpus(folder, arguments.megabytes * MEGABYTE) / MEGABYTE
        rates = sorted(size / run_prepare(folder, arguments.workers)[0] for _ in range(arguments.repeat))
        print(f"gpt2 prepare: best {rates[-1]:.1f} MB/s, median {rates[len(rates) // 2]:.1f} MB/s over {size:.0f} MB")
        print(f"encoding alone, {arguments.workers} threads: {tiktoken_limit(arguments.workers):.1f} MB/s")


if __name__ == "__main__":
    main()
