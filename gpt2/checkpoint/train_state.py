"""Checkpoints of a run: RUN/step_00001000/, a model folder with train_state/ in it, either whole or not there.

A step is written under a temporary name, every file fsynced, a manifest of sizes and SHA-256 sums last, and only
then renamed. A reader takes the newest step whose manifest holds, and says which it passed over and why. Where many
processes train, each writes and sums what it holds, into one folder that all of them see; the first does the rest.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2 import atomic
from gpt2.checkpoint.find import follow, point
from gpt2.errors import UserError
from gpt2.runtime import say

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2.checkpoint.pieces import Pieces
    from gpt2.checkpoint.together import Group

STATE = "train_state"
NUMBERS = "state.json"
MANIFEST = "manifest.json"
NEEDED_BY = "needed_by"  # in STATE: the folders of other runs that name this step as their model, a line each
WEIGHTS = "weights."  # before the names of those of a step's tensors that make the model
REPLACED = ".replaced"  # behind the hidden name of a step while another takes its place
NO_ROOM = 2**20  # bytes: with less than this free, a write that failed failed for want of room
SHARD = re.compile(r"__(\d+)_\d+\.distcp")  # what a process wrote, by its rank

Manifest = dict[str, tuple[int, str]]  # relative name -> (size in bytes, SHA-256)


@dataclass(frozen=True)
class Step:
    """What goes into a checkpoint. `numbers` becomes JSON; `write_model` makes a model folder of whole weights."""

    number: int
    numbers: dict[str, Any]
    pieces: Pieces
    write_model: Callable[[Path, Mapping[str, Tensor]], None]


def save_step(run: Path, step: Step, group: Group = None) -> Path:
    """Write RUN/step_<number>/ and make `last` name it; all processes of the group call it.

    An error on the way (a full disk, say) removes what was begun, leaves the older steps as they are, and is raised
    in all processes.
    """
    from gpt2.checkpoint.sharded import save
    from gpt2.checkpoint.together import rank_in, together

    main = rank_in(group) == 0
    folder = run / step_name(step.number)
    temporary = run / f".{folder.name}.tmp"
    try:
        together(group, lambda: make_empty(temporary) if main else None)
        save(step.pieces, temporary / STATE, group)
        together(group, lambda: write_rest(temporary, step) if main else None)
        parts = together(group, lambda: manifest(temporary, rank_in(group)))
        together(group, lambda: publish(temporary, folder, parts) if main else None)
    except Exception as error:
        full = isinstance(error, (OSError, RuntimeError)) and no_room(run)  # torch hides a full disk in a RuntimeError
        if main:
            shutil.rmtree(temporary, ignore_errors=True)
        if full:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder)) from error
        raise
    return folder


def make_empty(folder: Path) -> None:
    """A folder with nothing in it, whatever an interrupted save left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def write_rest(folder: Path, step: Step) -> None:
    """What the first process writes alone: the model folder and the numbers."""
    step.write_model(folder, whole_weights(folder, step))
    atomic.write_text(folder / STATE / NUMBERS, json.dumps(step.numbers, indent=1) + "\n")


def whole_weights(folder: Path, step: Step) -> Mapping[str, Tensor]:
    """The step's weights as they are at hand, or read back one by one from what all processes have just written."""
    from gpt2.checkpoint.sharded import Stored

    mine = {name: piece for name, piece in step.pieces.items() if name.startswith(WEIGHTS)}
    if all(piece.whole for piece in mine.values()):
        return {name.removeprefix(WEIGHTS): piece.local for name, piece in mine.items()}
    return Stored(folder / STATE, WEIGHTS)


def publish(temporary: Path, folder: Path, parts: list[Manifest]) -> None:
    """The marker that makes a step whole, the step's own name, and `last`."""
    listed = {name: entry for part in parts for name, entry in part.items()}
    atomic.write_text(temporary / STATE / MANIFEST, json.dumps(listed, indent=1, sort_keys=True) + "\n")
    for path in walk(temporary):
        atomic.sync(path)
    replace_folder(temporary, folder)
    point(folder.parent / "last", folder)
    atomic.sync(folder.parent)


def no_room(run: Path) -> bool:
    """Whether the disk that holds the run is full."""
    try:
        return shutil.disk_usage(run).free < NO_ROOM
    except OSError:  # the folder has vanished
        return False


def read_numbers(folder: Path) -> dict[str, Any]:
    """The numbers that `save_step` was given."""
    path = folder / STATE / NUMBERS
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error}); resume from an older step") from None
    if not isinstance(numbers, dict):
        raise UserError(f"{path}: not the numbers of a checkpoint")
    return numbers


def newest_good_step(run: Path) -> Path | None:
    """The newest step that is whole; damaged ones are named on stderr and passed over. None if there is none."""
    return last_whole(list(steps(run)))


def last_whole(folders: Sequence[Path], look: Callable[[Path], str | None] | None = None) -> Path | None:
    """The last of these steps in which `look` (`damage`) finds nothing wrong; the others are named."""
    for folder in reversed(folders):
        fault = (look or damage)(folder)
        if fault is None:
            return folder
        say(f"{folder}: {fault}; going back to the step before it")
    return None


def damage(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a step folder, by its manifest; None if nothing is. Of its files only one of so many parts."""
    try:
        wanted = json.loads((folder / STATE / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "incomplete: no readable manifest"
    largest = sorted(wanted.items(), key=lambda entry: (-entry[1][0], entry[0]))  # dealt out evenly, by size
    for name, (size, digest) in largest[part::parts]:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        try:
            if path.stat().st_size != size or sha256(path) != digest:
                return f"{name} is damaged"
        except OSError as error:  # a sector that cannot be read
            return f"{name} cannot be read ({error.strerror})"
    return None


def prune(run: Path, keep_last: int, keep: set[Path]) -> None:
    """Delete all but the newest `keep_last` steps and those in `keep`, and leftovers of interrupted saves.

    A step that another run needs stays for as long as that run is there. Newest means up to `last`: later ones are of a
    run that went back behind them as they were damaged, and count for nothing until it has written them anew.
    """
    keep, last = {path.resolve() for path in keep}, follow(run / "last")
    for folder in [step for step in steps(run) if last is None or step.name <= last.name][:-keep_last]:
        if folder.resolve() not in keep and not needed(folder):
            doomed = folder.with_name(f".{folder.name}.old")  # never seen half deleted under its own name
            folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
    clean_steps(run)


def need(step: Path, run: Path) -> None:
    """Note in a run's step that another run, an adapter for one, is nothing without it. Other folders are let be."""
    if not (step / STATE).is_dir():
        return
    try:
        with (step / STATE / NEEDED_BY).open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"{run.resolve()}\n")
    except OSError as error:
        say(f"{step}: not marked as needed ({error.strerror}); a run that goes on from it may remove it")


def needed(step: Path) -> bool:
    """Whether a run that needs this step is still there, as far as can be seen."""
    try:
        marks = (step / STATE / NEEDED_BY).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return False
    return any(not is_gone(Path(run)) for run in marks.splitlines())


def is_gone(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # behind another user's door
        return False
    return False


def clean(run: Path) -> None:
    """Remove what an interrupted run left half done. Only before a run: later, others may be at work on such files."""
    clean_steps(run)
    for path in run.glob(".*.tmp"):
        with suppress(OSError):  # a folder that would not go, a file that another program holds
            path.unlink()


def clean_steps(run: Path) -> None:
    """Remove what an interrupted save or deletion of a step left; put back what was just to be replaced."""
    for path in run.glob(f".step_*{REPLACED}"):
        folder = run / path.name.removeprefix(".").removesuffix(REPLACED)
        if not folder.exists():
            path.rename(folder)
    for pattern in (".step_*.tmp", ".step_*.old", f".step_*{REPLACED}"):
        for path in run.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def steps(run: Path) -> Iterator[Path]:
    """Step folders, oldest first."""
    found = [path for path in run.glob("step_*") if path.is_dir() and path.name[5:].isdigit()]
    yield from sorted(found, key=lambda path: int(path.name[5:]))


def step_name(step: int) -> str:
    return f"step_{step:08d}"


def manifest(folder: Path, rank: int = 0) -> Manifest:
    """Sizes and sums of the files below that this process wrote: its shards, and in the first all that is no shard."""
    files = [path for path in walk(folder) if path.is_file() and writer_of(path) == rank]
    return {path.relative_to(folder).as_posix(): (path.stat().st_size, sha256(path)) for path in files}


def writer_of(path: Path) -> int:
    """The rank of the process that wrote a file of a step."""
    shard = SHARD.fullmatch(path.name)
    return int(shard[1]) if shard else 0


def walk(folder: Path) -> list[Path]:
    """Everything below, and the folder itself last."""
    return [*sorted(folder.rglob("*"), reverse=True), folder]


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def replace_folder(temporary: Path, folder: Path) -> None:
    """Rename onto a folder that may exist: a damaged step that is written anew, the last one when it is validated."""
    if folder.exists():
        with suppress(OSError):
            shutil.copyfile(folder / STATE / NEEDED_BY, temporary / STATE / NEEDED_BY)
        old = folder.with_name(f".{folder.name}{REPLACED}")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        try:
            temporary.rename(folder)
        except OSError:
            old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        temporary.rename(folder)
    atomic.sync(folder.parent)


def read_run_config(run: Path) -> Path:
    """RUN/config.toml, or a UserError that says what a run is."""
    path = run / "config.toml"
    if not path.is_file():
        raise UserError(f"{run}: no run to resume (no config.toml in it)")
    return path
