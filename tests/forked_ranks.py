"""Runs `gpt2 train` as several processes that are forked from this one, which has imported everything: quick to start.

`python forked_ranks.py FOLDER TOKENS` does what tests/train/test_many_ranks.py looks at, and prints it as JSON.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

from forked_commands import load

from gpt2.cli.main import main as gpt2

SHAPE = ["--n_layer", "2", "--n_head", "2", "--n_embd", "32", "--context_length", "16", "--dtype", "float32"]
RHYTHM = ["--batch_tokens", "256", "--micro_batch_size", "2", "--save_every", "3", "--keep_last", "9"]
LONG = ["--max_steps", "100000", "--device", "cpu"]
SHORT = ["--max_steps", "8", "--device", "cpu"]
HALF = ["--dtype", "bfloat16", "--max_steps", "6", "--save_every", "2", "--eval_every", "2", "--device", "cpu"]

# Four heads, so that four processes can share them; nothing is saved before the end.
WIDE = ["--n_layer", "2", "--n_head", "4", "--n_embd", "32", "--context_length", "16", "--dtype", "float32"]
TWENTY = ["--batch_tokens", "256", "--max_steps", "20", "--device", "cpu"]
QUIET = ["--eval_every", "20", "--save_every", "20", "--optimizer", "adamw", "--learning_rate", "1e-3"]
MESHES = {  # name -> dp_replicate, dp_shard, tp
    "dp2": (2, 1, 1),
    "dp4": (4, 1, 1),
    "fsdp2": (1, 2, 1),
    "fsdp4": (1, 4, 1),
    "tp2": (1, 1, 2),
    "tp4": (1, 1, 4),
    "fsdp2_tp2": (1, 2, 2),
    "dp2_fsdp2": (2, 2, 1),
}

MUON = ["--batch_tokens", "256", "--max_steps", "6", "--save_every", "3", "--keep_last", "9", "--device", "cpu"]

TUNED = ["--max_steps", "10", "--eval_every", "5", "--batch_examples", "8", "--dtype", "float32", "--device", "cpu"]
FULL, LORA = ["--learning_rate", "1e-3"], ["--method", "lora", "--rank", "4", "--learning_rate", "1e-2"]
TUNINGS = {  # name -> processes and flags; two share the parameters of `full` and hold those of `lora` each
    "full_alone": (1, FULL),
    "full_two": (2, FULL),
    "full_tp2": (2, [*FULL, "--tp", "2"]),
    "lora_alone": (1, LORA),
    "lora_two": (2, LORA),
}


def main(folder: Path, tokens: Path) -> None:
    begin = ["train", "--data", str(tokens), *SHAPE, *RHYTHM, "--out"]
    on_meshes = ["train", "--data", str(tokens), *WIDE, *TWENTY, *QUIET, "--out"]
    load()
    codes = {"alone": finish(start(1, [*on_meshes, str(folder / "alone"), "--micro_batch_size=16"]))}
    codes["whole"] = finish(start(4, [*begin, str(folder / "whole"), *SHORT]))
    for count in (4, 2, 1):
        resumed = folder / f"on{count}"
        shutil.copytree(folder / "whole", resumed, symlinks=True)
        for step in (6, 8):
            shutil.rmtree(resumed / f"step_{step:08d}")
        codes[f"on{count}"] = finish(start(count, ["train", "--resume", str(resumed)]))
    codes |= (
        short_of_memory(folder, begin)
        | leap(folder, begin)
        | half(folder, begin)
        | meshes(folder, on_meshes)
        | tuning(folder)
        | muon(folder, tokens)
    )
    stopped = folder / "stopped"
    running = start(4, [*begin, str(stopped), *LONG])
    while not (stopped / "step_00000003").exists():
        time.sleep(0.01)
    begun = time.monotonic()
    os.kill(running[2], signal.SIGTERM)
    codes["stopped"] = finish(running)
    print(json.dumps({"codes": codes, "seconds": time.monotonic() - begun}))


def short_of_memory(folder: Path, begin: list[str]) -> dict[str, list[int]]:
    """Two processes, of which the second runs out of memory in step 5, and two that go on with what the first left."""
    import torch

    from gpt2.train.mesh_weights import MeshWeights

    whole, calls = MeshWeights.backward, []

    def backward(self: MeshWeights, loss: torch.Tensor, last: bool = True) -> None:
        calls.append(last)
        if os.environ["RANK"] == "1" and len(calls) == 4 * 4 + 2:  # four micro-batches a step
            raise torch.OutOfMemoryError("CUDA out of memory (as if)")
        whole(self, loss, last)

    MeshWeights.backward = backward  # type: ignore[method-assign]
    codes = {"short": finish(start(2, [*begin, str(folder / "short"), *SHORT]))}
    MeshWeights.backward = whole  # type: ignore[method-assign]
    return codes | {"short_again": finish(start(2, ["train", "--resume", str(folder / "short")]))}


def leap(folder: Path, begin: list[str]) -> dict[str, list[int]]:
    """Two processes that a leap stops in step 5; two that go on, and are ended in their last validation; two more."""
    from gpt2.train.guard import Guard, Habits, Leap
    from gpt2.train.hooks import Evaluate

    look, last_one, again = Guard.look, Evaluate.finish, ["train", "--resume", str(folder / "leap")]

    def stop(self: Guard, habits: Habits, loss: float, norm: float, step: int) -> str:
        if step == 5:
            raise Leap("step 5: a leap")
        return look(self, habits, loss, norm, step)

    Guard.look = stop  # type: ignore[method-assign]
    codes = {"leap": finish(start(2, [*begin, str(folder / "leap"), *SHORT]))}
    codes["leap_left"] = [int(path.name[5:]) for path in sorted((folder / "leap").glob("step_*"))]
    Guard.look = look  # type: ignore[method-assign]
    Evaluate.finish = lambda *_: None  # type: ignore[method-assign,assignment]
    codes["leap_again"] = finish(start(2, again))
    Evaluate.finish = last_one  # type: ignore[method-assign]
    return codes | {"leap_last": finish(start(2, again))}


def half(folder: Path, begin: list[str]) -> dict[str, list[int]]:
    """Two processes in bfloat16 that evaluate and save in the same steps, and two that go on from the last but one."""
    codes = {"half": finish(start(2, [*begin, str(folder / "half"), *HALF]))}
    shutil.copytree(folder / "half", folder / "half_again", symlinks=True)
    shutil.rmtree(folder / "half_again" / "step_00000006")
    return codes | {"half_again": finish(start(2, ["train", "--resume", str(folder / "half_again")]))}


def meshes(folder: Path, begin: list[str]) -> dict[str, list[int]]:
    """The same twenty steps on every mesh."""
    codes = {}
    for name, sizes in MESHES.items():
        words = [f"--{key}={size}" for key, size in zip(("dp_replicate", "dp_shard", "tp"), sizes, strict=True)]
        words += [f"--micro_batch_size={4 * sizes[2]}"]  # tensor parallelism is slow to call: fewer, larger passes
        codes[name] = finish(start(math.prod(sizes), [*begin, str(folder / name), *words]))
    return codes


def muon(folder: Path, tokens: Path) -> dict[str, list[int]]:
    """The default optimizer, alone and on two shares of two halves of the layers, gone on with by four and by one."""
    begin = ["train", "--data", str(tokens), *WIDE, *MUON, "--micro_batch_size=8", "--out"]
    codes = {"muon_alone": finish(start(1, [*begin, str(folder / "muon_alone")]))}
    codes["muon_mesh"] = finish(start(4, [*begin, str(folder / "muon_mesh"), "--dp_shard=2", "--tp=2"]))
    for count in (4, 1):
        resumed = folder / f"muon_on{count}"
        shutil.copytree(folder / "muon_mesh", resumed, symlinks=True)
        shutil.rmtree(resumed / "step_00000006")
        flags = [] if count == 4 else ["--tp=1"]
        codes[f"muon_on{count}"] = finish(start(count, ["train", "--resume", str(resumed), *flags]))
    return codes


def tuning(folder: Path) -> dict[str, list[int]]:
    """FOLDER/base learns FOLDER/pairs.jsonl, alone and as two, all of its weights and an adapter."""
    begin = ["finetune", "--model", str(folder / "base"), "--data", str(folder / "pairs.jsonl"), *TUNED, "--out"]
    return {
        name: finish(start(count, [*begin, str(folder / name), *flags])) for name, (count, flags) in TUNINGS.items()
    }


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
