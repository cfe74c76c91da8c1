"""Checkpoints of a run: what goes into one, when one is due, and the thread that writes it while training goes on.

The main thread only copies tensors; files, checksums, the rename, `best`, `last` and the deletion of old steps are
the thread's. It draws no random numbers and changes no tensor of the run, so a run has the same bits with it and
without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any, Protocol

import torch
from torch import Tensor

from gpt2 import atomic
from gpt2 import config as settings
from gpt2.checkpoint.find import follow, point
from gpt2.checkpoint.native import write_folder
from gpt2.checkpoint.pieces import Pieces, pieces, snapshot
from gpt2.checkpoint.together import Group, new_group, rank_in
from gpt2.checkpoint.train_state import WEIGHTS, Step, prune, save_step
from gpt2.distributed.launch import lost_peer
from gpt2.distributed.ranks import ToldElsewhere
from gpt2.errors import UserError
from gpt2.model.config import GPTConfig
from gpt2.runtime import say
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.train.background import Background
from gpt2.train.entries import Joined
from gpt2.train.faults import disk_error, last_good
from gpt2.train.loop import Run, StepResult
from gpt2.train.rng import random_tensors
from gpt2.train.settings import RunSettings

OPTIMIZER = "optimizer."
LOST = 60.0  # seconds that a checkpoint may still take when another process is gone: it cannot be one of all
ASKED_FOR = "# Of the command "  # in config.toml, before what tells it from others

# (folder, parameters by name, facts for its card): makes a step's folder one that can be written with
ModelWriter = Callable[[Path, Mapping[str, Tensor], Mapping[str, Any]], None]


class Found(Protocol):
    """What a validation found, nats each."""

    @property
    def loss(self) -> float: ...
    @property
    def start_loss(self) -> float:
        """Over what all validations of the run read: it says which of them is the best."""
        ...

    @property
    def per(self) -> str:
        """What the losses are means over: a token, a text, a pair."""
        ...


class Judge(Protocol):
    """The hook that validates, before this one."""

    @property
    def latest(self) -> Found | None: ...
    @property
    def latest_step(self) -> int: ...


@dataclass
class Save:
    """A checkpoint every `save_every` steps, at the end and when the run is stopped; `best` follows validation.

    A hook of the loop, and a context around it: leaving it waits for the last checkpoint. All processes must make
    one. `identity` says what the run reads (see restore.py); `notes` go onto the model's card.
    """

    folder: Path
    config: RunSettings
    writer: ModelWriter
    evaluate: Judge
    notes: dict[str, Any]
    identity: dict[str, Any]
    thread: Background = field(default_factory=Background)
    group: Group = field(default_factory=new_group)
    copies: Pieces | None = None  # pinned memory of the last snapshot of a GPU
    latest: int = 0  # the step that was saved last, or is being saved

    def __enter__(self) -> Save:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Let the last checkpoint be finished; a second Ctrl-C does not wait for it, nor who has lost the others."""
        if error is None:
            self.finish()
        elif isinstance(error, RuntimeError) and self.group is not None and lost_peer(error):
            self.thread.wait(LOST)
        elif isinstance(error, Exception):
            try:
                self.finish()
            except UserError as another:
                say(str(another))

    def __call__(self, run: Run, result: StepResult) -> None:
        step = run.state.step
        if self.thread.failed:
            run.asked = True  # all processes end together, and then say why
        if step % (self.config.save_every or run.max_steps) == 0 or step == run.max_steps or run.stopping:
            self.save(run)

    def keep(self, run: Run) -> None:
        """Save where the run stands, if no checkpoint does yet: a step was broken off."""
        if run.state.step > self.latest:
            self.save(run)

    def save(self, run: Run) -> None:
        """Copy what makes the run and have it written; what went wrong with the one before is raised here."""
        self.finish()
        self.latest = run.state.step
        improved = self.note_best(run)
        live = pieces(tensors_of(run))
        step = Step(self.latest, self.numbers(run), self.copied(live), self.model_writer(run))
        self.thread.start(lambda: self.write(step, improved))
        if not self.config.async_save:
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint in the making, if there is one; UserError if it could not be written."""
        error = self.thread.join()
        if isinstance(error, OSError):
            if rank_in(self.group) > 0:
                raise ToldElsewhere("the main process says why") from error
            way_out = last_good(self.folder, self.config.command)
            raise UserError(f"step {self.latest}: {disk_error(error)}; {way_out}") from error
        if error is not None:
            raise error

    def note_best(self, run: Run) -> bool:
        """Whether this step's validation is the best so far, which the state then knows."""
        latest, state = self.evaluate.latest, run.state
        if latest is None or self.evaluate.latest_step != state.step:
            return False
        if not latest.start_loss < state.best_val_loss:  # so put that NaN is no better than anything
            return False
        state.best_val_loss, state.best_step = latest.start_loss, state.step
        return True

    def copied(self, live: Pieces) -> Pieces:
        """A snapshot, or the live tensors themselves where training waits for them."""
        if not self.config.async_save:
            return live
        copies = snapshot(live, self.copies)
        self.copies = copies if any(piece.local.is_cuda for piece in live.values()) else None
        return copies

    def write(self, step: Step, improved: bool) -> None:
        """The thread's part. Only the first process makes and removes anything beside its own tensors."""
        main = rank_in(self.group) == 0
        folder = self.write_step(step, main)
        if main:
            if improved:
                point(self.folder / "best", folder)
            prune(self.folder, self.config.keep_last, {path for path in [follow(self.folder / "best")] if path})

    def write_step(self, step: Step, main: bool) -> Path:
        """Write the files; a folder that vanishes meanwhile is made anew, once. All processes see the same error."""
        for last_try in (False, True):
            if main and not (self.folder / "config.toml").exists():
                say(f"{self.folder}: vanished; it is made anew")
                write_settings(self.folder, self.config)
            try:
                return save_step(self.folder, step, self.group)
            except OSError as error:
                if last_try or "No such file" not in str(error):
                    raise
        raise AssertionError

    def numbers(self, run: Run) -> dict[str, Any]:
        """The part of a checkpoint that is a few numbers and names."""
        return {
            "state": asdict(run.state),
            "cursor": run.batches.state(),
            "loss_scale": run.weights.loss_scale,
            "good_steps": run.weights.good_steps,
            "threads": torch.get_num_threads(),
            "processes": run.ranks.world_size,
            "data": self.identity,
            "config": settings.to_tree(self.config),
        }

    def model_writer(self, run: Run) -> Any:
        """What makes the step a folder to write with, later, without a look at the run."""
        notes = {"Training step": f"{run.state.step:,} of {run.max_steps:,}", **self.notes}
        if self.evaluate.latest is not None:
            notes["Validation loss"] = f"{self.evaluate.latest.loss:.4f} nats per {self.evaluate.latest.per}"

        def write(folder: Path, weights: Mapping[str, Tensor]) -> None:
            self.writer(folder, Joined(weights), notes)

        return write


def whole_model(config: GPTConfig, tokenizer: Tokenizer | None) -> ModelWriter:
    """Makes a step a model folder."""

    def write(folder: Path, weights: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        write_folder(folder, config, weights, tokenizer, notes)

    return write


def tensors_of(run: Run) -> dict[str, Tensor]:
    """Everything of a run that is tensors, live, by names that do not depend on the number of processes."""
    weights = {WEIGHTS + name: tensor for name, tensor in run.weights.tensors().items()}
    optimizer = {OPTIMIZER + name: tensor for name, tensor in run.optimizer.tensors().items()}
    group = run.ranks.data_rank  # tensor-parallel peers draw the same numbers
    dice = {f"rng.{group}.{kind}": tensor for kind, tensor in random_tensors(run.device).items()}
    return weights | optimizer | dice


def write_settings(folder: Path, config: RunSettings, asked_for: str = "") -> None:
    """The run's folder with its resolved config.toml, which makes it one that can be resumed.

    `asked_for` tells the command that began it from others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    resume = f"gpt2 {config.command} --resume {quote(str(folder))}"
    header = f"# Resolved settings of this run. Resume with: {resume}\n"
    header += f"{ASKED_FOR}{asked_for}\n" if asked_for else ""
    atomic.write_text(folder / "config.toml", header + settings.dump_toml(settings.to_tree(config)))
