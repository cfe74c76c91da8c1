"""Claim: a run that is killed again and again (kill -9, half of them in the midst of a save) and resumed each time
leaves the trace of one that was not: step, tokens, loss, gradient norm and learning rate, bit for bit.

`python benchmarks/faults.py [--kills 100] [--processes 1] [--seed 1]`. With more processes the runs go under torchrun,
sharded over them, and each kill takes one of these; else they are forked from a process that has imported
everything, which spares each its start-up. Fast forms of this, and the other faults (damaged files, a full disk, a
vanished folder, SIGTERM), are tests: tests/train/test_faults.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch.distributed.checkpoint  # noqa: F401  (so that the forked have it)

from gpt2.checkpoint.train_state import newest_good_step, steps
from gpt2.cli.main import main as gpt2
from gpt2.data.shards import Meta, SplitMeta
from gpt2.train import pretrain  # noqa: F401  (likewise)

TRACE = ("step", "tokens", "train/loss", "grad_norm", "learning_rate")
Trace = list[tuple[float, ...]]
VOCABULARY = 61
PATIENCE, SAVING = 4.0, 0.1  # seconds from the start to a kill at most, and from a save's
STEPS = 600
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 64, "context_length": 32, "dropout": 0.1, "dtype": "float32"}
RHYTHM = {"max_steps": STEPS, "batch_tokens": 512, "micro_batch_size": 5, "save_every": 10, "eval_every": 30}
SETTINGS = {**SHAPE, **RHYTHM, "sample_every": STEPS, "device": "cpu"}


@dataclass
class Tally:
    """What became of the kills."""

    saving: int = 0  # a save was under way: its temporary folder was left behind
    starting: int = 0  # before the first new step
    between: int = 0
    lost: list[int] = field(default_factory=list)  # steps to do again after each
    wrong: list[str] = field(default_factory=list)  # how a trace or a folder was not as it should be


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=100)
    options.add_argument("--processes", type=int, default=1)
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokens(folder / "tokens")
        start = time.perf_counter()
        assert Trainer(given.processes, begin(folder, "whole")).wait() == 0
        whole = trace(folder / "whole")
        assert len(whole) == STEPS
        tally = kill_and_resume(given.processes, folder, whole, given.kills, random.Random(given.seed))
        report(tally, given.processes, time.perf_counter() - start)


class Trainer:
    """`gpt2 train ARGUMENTS` in one process or several."""

    def __init__(self, processes: int, arguments: list[str]) -> None:
        self.forked, self.launched = None, None
        if processes == 1:
            self.forked = multiprocessing.get_context("fork").Process(target=train, args=(arguments,))
            self.forked.start()
        else:
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "gpt2"]
            command = [sys.executable, *launcher, "train", *arguments]
            self.launched = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def alive(self) -> bool:
        return self.forked.is_alive() if self.forked else self.launched.poll() is None

    def kill(self, dice: random.Random) -> None:
        """SIGKILL to it, or to one of the processes that torchrun has started."""
        pid = (self.forked or self.launched).pid
        victim = dice.choice(list(children(pid)) or [pid]) if self.launched else pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)

    def wait(self) -> int:
        """The exit status; below zero after a kill."""
        if self.launched:
            return self.launched.wait()
        self.forked.join()
        return self.forked.exitcode


def train(arguments: list[str]) -> None:
    """The command line in a forked process, with nothing to say."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os._exit(gpt2(["train", *arguments]))


def kill_and_resume(processes: int, folder: Path, whole: Trace, kills: int, dice: random.Random) -> Tally:
    """Runs, one after another where the kills are more than one lasts for, each compared with the whole one."""
    tally, number, arguments = Tally(), 0, begin(folder, "broken0")
    while len(tally.lost) < kills:
        run = folder / f"broken{number}"
        killed = run_and_kill(Trainer(processes, arguments), run, dice, tally)
        check(run, whole, tally)
        number += not killed  # it had come to its end: one more of them
        begun = killed and (run / "config.toml").exists()
        arguments = ["--resume", str(run)] if begun else begin(folder, f"broken{number}")
    assert Trainer(processes, arguments).wait() == 0
    check(folder / f"broken{number}", whole, tally)
    return tally


def run_and_kill(trainer: Trainer, run: Path, dice: random.Random, tally: Tally) -> bool:
    """Kill -9 some time after the start, or within a save, by turns. False if the run had ended before."""
    before, saving, patience = last_step(run), len(tally.lost) % 2 == 1, time.monotonic() + dice.random() * PATIENCE
    while trainer.alive() and (saving or time.monotonic() < patience):
        if saving and any(run.glob(".step_*.tmp")):
            time.sleep(dice.random() * SAVING)
            break
        time.sleep(0.0005)
    trainer.kill(dice)
    code = trainer.wait()
    if code == 0:
        return False
    if trainer.forked and code != -signal.SIGKILL:
        tally.wrong.append(f"{run.name}: ended with {code} after step {last_step(run)}")
    count(run, before, tally)
    return True


def count(run: Path, before: int, tally: Tally) -> None:
    """Note where the kill fell and what it cost."""
    reached = last_step(run)
    newest = max((int(path.name[5:]) for path in steps(run)), default=0)
    if any(run.glob(".step_*.tmp")):
        tally.saving += 1
    elif reached <= before:
        tally.starting += 1
    else:
        tally.between += 1
    tally.lost.append(reached - newest)


def check(run: Path, whole: Trace, tally: Tally) -> None:
    """The trace so far is the beginning of the whole one, and the newest step's checksums hold."""
    mine = trace(run)
    if mine != whole[: len(mine)]:
        at = next(index for index, pair in enumerate(zip(mine, whole, strict=False)) if pair[0] != pair[1])
        tally.wrong.append(f"{run.name}: step {at + 1} is {mine[at]} instead of {whole[at]}")
    newest = max(steps(run), default=None)
    if newest is not None and newest_good_step(run) != newest:
        tally.wrong.append(f"{run.name}: {newest.name} is damaged")


def report(tally: Tally, processes: int, seconds: float) -> None:
    again = f"{statistics.median(tally.lost):.0f} ({max(tally.lost)})"
    row = (processes, len(tally.lost), tally.saving, tally.starting, tally.between, again, len(tally.wrong))
    print("| processes | kills | in a save | before a new step | between saves | steps done again (most) | wrong |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print(f"| {' | '.join(map(str, row))} |")
    print(f"\n{seconds:.0f} s; every trace compared after each resume, {STEPS} steps each")
    if tally.wrong:
        sys.exit("\n".join(tally.wrong))


def begin(folder: Path, name: str) -> list[str]:
    """The arguments of a fresh run."""
    settings = {"data": folder / "tokens", "out": folder / name, **SETTINGS}
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def children(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        yield from map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def trace(run: Path) -> Trace:
    """What must be the same to the last bit; JSON keeps every digit of a float."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError:
        return []
    read = [json.loads(line) for line in lines if line.endswith("\n")]
    return [tuple(line[key] for key in TRACE) for line in read if "train/loss" in line]


def last_step(run: Path) -> int:
    mine = trace(run)
    return int(mine[-1][0]) if mine else 0


def write_tokens(folder: Path, train: int = 60_000, val: int = 900) -> None:
    """A random walk over a small vocabulary."""
    folder.mkdir()
    walk = np.random.default_rng(5).integers(-2, 3, train + val)
    ids = (np.cumsum(walk) % VOCABULARY).astype("<u2")
    (folder / "train.bin").write_bytes(ids[:train].tobytes())
    (folder / "val.bin").write_bytes(ids[train:].tobytes())
    sides = {name: SplitMeta((f"{name}.bin",), size) for name, size in (("train", train), ("val", val))}
    Meta(vocab_size=VOCABULARY, **sides).save(folder)


if __name__ == "__main__":
    main()
