"""Claims: int8 weights serve 16 streams of full length in little memory; the first token comes soon after the command.

Both are parts of generate.py:

    python benchmarks/generate.py --only memory,startup
"""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from peers.engines import Format

STREAMS, NEW = 16, 24  # prompts that with so many new tokens fill the context
RESIDENT = {"int8": 650, "bfloat16": 900}  # MB (10^6 bytes), by the form of keys and values
PACKED = Format("gpt2", "int8")
SECONDS = {"float32 safetensors": 2.0, "int8, packed": 1.0}


def memory(folder: Path, files: Path, rounds: int) -> str:
    """What 16 streams take, each context full to the last token; a table. Memory does not vary: one round."""
    path = PACKED.write(folder, files)
    first_token(path)  # compiles, where that was not done yet
    lines = [f"| int8 weights, {STREAMS} full streams: keys and values | MB at the end | at most | limit | |"]
    lines.append("| --- " * 5 + "|")
    for kv, limit in RESIDENT.items():
        command = [sys.executable, __file__, str(path), kv]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        at_end, most = (value / 1e6 for value in json.loads(done.stdout))
        lines.append(f"| {kv} | {at_end:.0f} | {most:.0f} | {limit} | {'held' if most < limit else 'missed'} |")
    return "\n".join(lines)


def serve(path: Path, kv: str) -> tuple[int, int]:
    """Fill every page in this process; bytes resident at the end, and at most."""
    import gpt2

    model = gpt2.load(path, device="cpu", kv=kv)
    engine = gpt2.Engine(model, max_streams=STREAMS)
    dice = random.Random(0)
    length = model.config.context_length - NEW + 1  # the last token is written, not read
    prompts = [[dice.randrange(model.config.vocab_size - 1) for _ in range(length)] for _ in range(STREAMS)]
    params = gpt2.SamplingParams(max_new_tokens=NEW, temperature=0.0, ignore_eot=True)
    results = engine.generate(prompts, params)
    assert [len(result.tokens) for result in results] == [NEW] * STREAMS
    assert engine.stats.read >= STREAMS * model.config.context_length and not engine.stats.preemptions
    return resident(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident() -> int:
    """Bytes of this process that lie in memory, mapped files included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def startup(folder: Path, files: Path, rounds: int) -> str:
    """Seconds from the command to its end with one token written, in new processes, the page cache warm; a table."""
    paths = dict(zip(SECONDS, (folder, PACKED.write(folder, files)), strict=True))
    for path in paths.values():
        first_token(path)
    times: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(rounds):
        for name in list(paths)[:: 1 if number % 2 == 0 else -1]:
            times[name].append(first_token(paths[name]))
    lines = ["| `gpt2 generate --max-new-tokens 1` from | median, s | worst | limit | |", "| --- " * 5 + "|"]
    for name, limit in SECONDS.items():
        median = statistics.median(times[name])
        verdict = "held" if median < limit else "missed"
        lines.append(f"| {name} | {median:.2f} | {max(times[name]):.2f} | {limit} | {verdict} |")
    return "\n".join(lines)


def first_token(path: Path) -> float:
    """Seconds of the whole command."""
    words = ["generate", "--model", str(path), "--device", "cpu", "--max-new-tokens", "1", "Once upon a time"]
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "gpt2", *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return time.perf_counter() - start


if __name__ == "__main__":
    print(json.dumps(serve(Path(sys.argv[1]), sys.argv[2])))
