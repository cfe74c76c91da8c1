"""Checkpoints of a run: RUN/step_00001000/, a model folder with train_state/ in it, either whole or not there.

A step is written under a temporary name, every file fsynced, a manifest of sizes and SHA-256 sums last, and only
then renamed. A reader takes the newest step whose manifest holds, and says which it passed over and why.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpt2 import atomic
from gpt2.checkpoint.find import point
from gpt2.errors import UserError
from gpt2.runtime import say

STATE = "train_state"
MANIFEST = "manifest.json"
NO_ROOM = 2**20  # bytes: with less than this free, a write that failed failed for want of room


def save_step(
    run: Path, step: int, write_model: Callable[[Path], None], numbers: dict[str, Any], objects: dict[str, Any]
) -> Path:
    """Write RUN/step_<step>/ and make `last` name it.

    `numbers` becomes JSON, each of `objects` (tensors in plain containers) one file that loads without running code.
    An error on the way (a full disk, say) removes what was begun and leaves the older steps as they are.
    """
    import torch

    folder = run / step_name(step)
    temporary = run / f".{folder.name}.{os.getpid()}.tmp"
    try:
        write_model(temporary)
        (temporary / STATE).mkdir(exist_ok=True)
        for name, value in objects.items():
            with (temporary / STATE / f"{name}.pt").open("wb") as file:
                torch.save(value, file)
        atomic.write_text(temporary / STATE / "state.json", json.dumps(numbers, indent=1) + "\n")
        atomic.write_text(temporary / STATE / MANIFEST, json.dumps(manifest(temporary), indent=1) + "\n")
        for path in walk(temporary):
            atomic.sync(path)
        replace_folder(temporary, folder)
    except BaseException as error:
        full = shutil.disk_usage(run).free < NO_ROOM
        shutil.rmtree(temporary, ignore_errors=True)
        if full and isinstance(error, (OSError, RuntimeError)):  # torch.save hides a full disk in a RuntimeError
            raise OSError(errno.ENOSPC, "No space left on device", str(folder)) from error
        raise
    point(run / "last", folder)
    atomic.sync(run)
    return folder


def load_step(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(numbers, objects) as `save_step` was given them."""
    import torch

    numbers = json.loads((folder / STATE / "state.json").read_text(encoding="utf-8"))
    objects = {
        path.stem: torch.load(path, map_location="cpu", weights_only=True)
        for path in sorted((folder / STATE).glob("*.pt"))
    }
    return numbers, objects


def newest_good_step(run: Path) -> Path | None:
    """The newest step that is whole; damaged ones are named on stderr and passed over. None if there is none."""
    for folder in reversed(list(steps(run))):
        fault = damage(folder)
        if fault is None:
            return folder
        say(f"{folder}: {fault}; going back to the step before it")
    return None


def damage(folder: Path) -> str | None:
    """What is wrong with a step folder, by its manifest; None if nothing is."""
    try:
        wanted = json.loads((folder / STATE / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "incomplete: no readable manifest"
    for name, (size, digest) in wanted.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size or sha256(path) != digest:
            return f"{name} is damaged"
    return None


def prune(run: Path, keep_last: int, keep: set[Path]) -> None:
    """Delete all but the newest `keep_last` steps and those in `keep`, and leftovers of interrupted saves."""
    keep = {path.resolve() for path in keep}
    for folder in list(steps(run))[:-keep_last]:
        if folder.resolve() not in keep:
            doomed = folder.with_name(f".{folder.name}.old")  # never seen half deleted under its own name
            folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
    clean(run)


def clean(run: Path) -> None:
    """Remove what an interrupted save or deletion left."""
    for pattern in (".step_*.tmp", ".step_*.old", ".*.tmp"):
        for path in run.glob(pattern):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def steps(run: Path) -> Iterator[Path]:
    """Step folders, oldest first."""
    found = [path for path in run.glob("step_*") if path.is_dir() and path.name[5:].isdigit()]
    yield from sorted(found, key=lambda path: int(path.name[5:]))


def step_name(step: int) -> str:
    return f"step_{step:08d}"


def manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """Relative name -> (size in bytes, SHA-256) of every file below."""
    files = [path for path in walk(folder) if path.is_file()]
    return {path.relative_to(folder).as_posix(): (path.stat().st_size, sha256(path)) for path in files}


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
    """Rename onto a folder that may exist (a damaged step that is written anew)."""
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        temporary.rename(folder)
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
