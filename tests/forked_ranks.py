"""Runs `gpt2 train` as several processes that are forked from this one, which has imported everything: quick to start.

`python forked_ranks.py FOLDER TOKENS` does what tests/train/test_many_ranks.py looks at, and prints it as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import torch.distributed.checkpoint
import torch.distributed.fsdp  # noqa: F401  (so that the forked have it)

from gpt2.cli.main import main as gpt2
from gpt2.train import pretrain  # noqa: F401  (likewise)

SHAPE = ["--n_layer", "2", "--n_head", "2", "--n_embd", "32", "--context_length", "16", "--dtype", "float32"]
RHYTHM = ["--batch_tokens", "256", "--micro_batch_size", "2", "--save_every", "3", "--keep_last", "9"]
LONG = ["--max_steps", "100000", "--device", "cpu"]
SHORT = ["--max_steps", "8", "--device", "cpu"]


def main(folder: Path, tokens: Path) -> None:
    begin = ["train", "--data", str(tokens), *SHAPE, *RHYTHM, "--out"]
    codes = {"whole": finish(start(4, [*begin, str(folder / "whole"), *SHORT]))}
    for count in (4, 2, 1):
        resumed = folder / f"on{count}"
        shutil.copytree(folder / "whole", resumed, symlinks=True)
        for step in (6, 8):
            shutil.rmtree(resumed / f"step_{step:08d}")
        codes[f"on{count}"] = finish(start(count, ["train", "--resume", str(resumed)]))
    stopped = folder / "stopped"
    running = start(4, [*begin, str(stopped), *LONG])
    while not (stopped / "step_00000003").exists():
        time.sleep(0.01)
    begun = time.monotonic()
    os.kill(running[2], signal.SIGTERM)
    codes["stopped"] = finish(running)
    print(json.dumps({"codes": codes, "seconds": time.monotonic() - begun}))


def start(count: int, words: list[str]) -> list[int]:
    """Process ids, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [fork(rank, count, port, words) for rank in range(count)]


def fork(rank: int, count: int, port: int, words: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    code = 99
    try:
        code = gpt2(words)
    finally:
        os._exit(code)


def finish(pids: list[int]) -> list[int]:
    """Exit statuses, by rank."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
