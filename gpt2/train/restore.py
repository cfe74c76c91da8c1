"""From a checkpoint back to a run that goes on as if nothing had happened."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import torch

from gpt2 import config as settings
from gpt2.checkpoint.find import point
from gpt2.checkpoint.train_state import STATE, WEIGHTS, clean, damage, last_whole, read_numbers, step_name, steps
from gpt2.data.shards import Split
from gpt2.distributed.ranks import ALONE, Ranks
from gpt2.errors import UserError
from gpt2.runtime import say, seed_everything
from gpt2.train.corpus import Corpus
from gpt2.train.loop import Run, TrainState
from gpt2.train.rng import restore_random
from gpt2.train.save import OPTIMIZER
from gpt2.train.settings import RunSettings

SAMPLED = 64  # blocks of a split that its hash reads: enough to tell other text, and quick on any length
BLOCK = 1024  # tokens


def find_step(out: Path, ranks: Ranks = ALONE) -> Path | None:
    """The newest whole step, the same in all processes; the first removes what a kill left half done.

    Each process sums its part of the files. UserError where one does not see them.
    """
    names: list[str] = []
    if ranks.is_main:
        clean(out)
        names = [step.name for step in steps(out)]
    return last_whole([out / name for name in ranks.share(names)], functools.partial(look_together, ranks))


def look_together(ranks: Ranks, step: Path) -> str | None:
    """`damage` that any process finds in its part of a step's files."""
    ranks.attempt(functools.partial(see, step))
    faults = ranks.collect(damage(step, ranks.rank, ranks.world_size))
    return next((fault for fault in faults if fault is not None), None)


def see(step: Path) -> None:
    """UserError if the folder is not there for this process."""
    if not step.is_dir():
        raise UserError(f"{step}: not seen by every process; the run's folder must be one that all of them see")


def restore(run: Run, reads: dict[str, Any], config: RunSettings, step: Path) -> None:
    """Put a checkpoint's weights, optimizer, random numbers and data cursor into a fresh run.

    `reads` says what the run reads now (`identity`); UserError where it is not what the checkpoint's run read.
    """
    from gpt2.checkpoint import sharded

    numbers = read_numbers(step)
    if "data" not in numbers:
        raise UserError(f"{step}: written by an older version; start a new run from its model with --init {step}")
    refuse_other_data(step, numbers["data"], reads, config)
    weights = {WEIGHTS + name: tensor for name, tensor in run.weights.tensors().items()}
    optimizer = {OPTIMIZER + name: tensor for name, tensor in run.optimizer.tensors().items()}
    sharded.load(weights | optimizer, step / STATE)
    run.weights.loss_scale, run.weights.good_steps = numbers["loss_scale"], numbers["good_steps"]
    run.weights.publish()
    run.state = TrainState(**numbers["state"])
    if numbers["config"].get("micro_batch_size") != settings.to_tree(config).get("micro_batch_size"):
        run.state.halvings = 0  # of another number of rows
    run.batches.load(numbers["cursor"])
    restore_dice(run, config, step)
    if run.ranks.is_main:
        point_best(step.parent, run.state.best_step)
        warn_of_changes(run, numbers)


def restore_dice(run: Run, config: RunSettings, step: Path) -> None:
    """The random numbers of this process's rows, or new ones where there were fewer groups of rows."""
    from gpt2.checkpoint import sharded

    dice = sharded.load_whole(step / STATE, f"rng.{run.ranks.data_rank}.")
    if dice:
        restore_random(dice, run.device)
    else:
        seed_everything(config.seed + run.state.step * run.ranks.data_size + run.ranks.data_rank)


def point_best(out: Path, best_step: int) -> None:
    """A kill may have come between a step and its mark."""
    if (best := out / step_name(best_step)).is_dir():
        point(out / "best", best)


def warn_of_changes(run: Run, numbers: dict[str, Any]) -> None:
    """Say what makes the resumed run differ in its last bits."""
    now = {"threads": torch.get_num_threads(), "processes": run.ranks.world_size}
    for name, count in now.items():
        if numbers[name] != count:
            say(f"{numbers[name]} {name} before, {count} now: the last bits may differ")


def identity(corpus: Corpus) -> dict[str, Any]:
    """What a run reads, so that it is not resumed with anything else."""
    meta, tokenizer = corpus.train.meta, corpus.tokenizer
    return {
        **{name: split_hash(split) for name, split in corpus.training().items()},
        "val": split_hash(corpus.val),
        "tokenizer": tokenizer.hash if tokenizer else meta.tokenizer_hash,
    }


def split_hash(split: Split) -> str:
    """SHA-256 of a split's length and of blocks spread over it."""
    digest = hashlib.sha256(str(len(split)).encode())
    last = max(0, len(split) - BLOCK)
    for start in sorted({last * part // (SAMPLED - 1) for part in range(SAMPLED)}):
        digest.update(split.tokens(start, min(len(split), start + BLOCK)).tobytes())
    return digest.hexdigest()


def refuse_other_data(step: Path, before: dict[str, Any], now: dict[str, Any], config: RunSettings) -> None:
    """UserError that names what has changed."""
    words = {"train": "the training text", "val": "the held-out text", "tokenizer": "the tokenizer", "base": "the base"}
    anew = "init" if config.command == "train" else "model"
    changed = [words.get(name, name) for name in now | before if before.get(name) != now.get(name)]
    if changed:
        raise UserError(
            f"{config.data}: {' and '.join(changed)} changed since {step} was written; prepare the data as it was, or "
            f"start a new run from that model with --{anew} {step}"
        )
