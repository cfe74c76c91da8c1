"""From a run's ingredients to its end: the loop with its hooks, and what a person hears whatever ends it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import torch

from gpt2.distributed.launch import lost_peer
from gpt2.distributed.ranks import ToldElsewhere
from gpt2.errors import UserError
from gpt2.runtime import say
from gpt2.train.faults import disk_error, last_good
from gpt2.train.guard import BadStep, Leap
from gpt2.train.live import Live
from gpt2.train.loop import Hook, OutOfMemory, Run, TrainState, fit
from gpt2.train.metrics import MetricsFile
from gpt2.train.save import Found, Save
from gpt2.train.settings import RunSettings
from gpt2.train.shortage import note_rows
from gpt2.train.stop import stopping_on_signals


@dataclass(frozen=True)
class Finished:
    """How a run ended: its folder, where it stands, the last validation, the signal that stopped it early if any."""

    folder: Path
    state: TrainState
    validation: Found | None
    stopped_by: signal.Signals | None = None


def drive(
    run: Run,
    config: RunSettings,
    live: Live,
    hooks: Sequence[Hook],
    save: Save,
    metrics: MetricsFile,
    validate: Callable[[Run], None] | None = None,
) -> signal.Signals | None:
    """Run the loop with its hooks, saving last; returns the signal that stopped it, if one did.

    `validate` is for the model that is done: it comes behind its checkpoint, which a kill then leaves there.
    """
    save.latest = run.state.step
    with live, stopping_on_signals(run) as request:
        try:
            with explaining(run, config), save:
                train(run, hooks, save)
                if validate is not None and run.state.step == run.max_steps != run.state.validated:
                    validate(run)
                    if run.state.validated == run.max_steps:  # it was not broken off
                        save.save(run)
        finally:
            metrics.close()
        signals = [number for number in run.ranks.collect(request.signal) if number is not None]
    resume = f"gpt2 {config.command} --resume {quote(config.out)}"
    if run.ended:
        say(run.ended)
    elif run.state.step < run.max_steps:
        say(f"stopped after step {run.state.step} of {run.max_steps}; go on with: {resume}")
    elif validate is not None and run.state.validated < run.max_steps:
        say(f"trained, but not validated; make up for it with: {resume}")
    return next(iter(signals), None)


def train(run: Run, hooks: Sequence[Hook], save: Save) -> None:
    """The loop; what was there before a leap that ends the run, or before a step that was broken off, is saved.

    Not where there is no number: then the weights may be what is wrong, and older ones are of more use.
    """
    try:
        fit(run, [*hooks, save])
    except Leap:
        try:
            save.keep(run)
        except UserError as error:  # the leap is what the user must hear of last
            say(str(error))
        raise
    save.keep(run)


@contextmanager
def explaining(run: Run, config: RunSettings) -> Iterator[None]:
    """The loop's errors as the user's, with the last good checkpoint. What befalls all processes the main one tells."""
    where = f"process {run.ranks.rank}, " if run.ranks.world_size > 1 else ""
    try:
        yield
    except BadStep as error:
        raise told_once(run, config, f"{error}; training stopped", type(error)) from error
    except OutOfMemory as error:
        if error.rows == 1:
            raise
        note_rows(run, config, error.rows)
        way_out = f"started again with --resume {quote(config.out)}, or by torchrun's --max-restarts"
        raise UserError(f"{error}, or have it halved: {way_out}") from error
    except torch.OutOfMemoryError as error:  # of the optimizer, an evaluation, a sample: fewer rows are no help
        way_out = last_good(Path(config.out), config.command)
        less = "a smaller model or context takes less, or its parameters shared by more processes"
        fault = f"{where}after step {run.state.step}: out of memory on {run.device}, not in the passes"
        raise UserError(f"{fault}; {less}; {way_out}") from error
    except OSError as error:
        way_out = last_good(Path(config.out), config.command)
        raise UserError(f"{where}step {run.state.step}: {disk_error(error)}; {way_out}") from error
    except RuntimeError as error:
        if run.ranks.world_size == 1 or not lost_peer(error):
            raise
        gone = f"step {run.state.step + 1}: another process is gone; what it said, or torchrun's report, tells why"
        raise told_once(run, config, gone) from error


def told_once(run: Run, config: RunSettings, fault: str, kind: type[UserError] = UserError) -> UserError:
    """The fault and the way out in the main process, a silent end in the others."""
    if not run.ranks.is_main:
        return ToldElsewhere("the main process says why")
    return kind(f"{fault}; {last_good(Path(config.out), config.command)}")
