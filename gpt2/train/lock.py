"""One training at a time in a run's folder: two would write each other's checkpoints and delete half-done ones."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from gpt2.distributed.ranks import Ranks
from gpt2.errors import UserError
from gpt2.runtime import say

try:
    import fcntl
except ImportError:  # Windows has no flock: nothing is locked there
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
PAUSE = 0.2  # seconds between two looks


@contextmanager
def alone_in(folder: Path, ranks: Ranks, patience: float = 0.0) -> Iterator[None]:
    """The main process holds FOLDER/.lock while inside, and says in it who it is. All processes must come.

    The system lets go of the lock when its holder ends, however that comes about; the file may stay, it means nothing
    by itself. UserError in all processes if another holds it for longer than `patience` seconds. Where files cannot be
    locked (some network file systems) one line says so, and the run goes on.
    """
    held = ranks.attempt(lambda: hold(folder, patience) if ranks.is_main else None)
    try:
        yield
    finally:
        if held is not None:
            held.close()


def hold(folder: Path, patience: float) -> TextIO | None:
    """The locked file, which must stay open; None where nothing can be locked."""
    if fcntl is None:
        return None
    file = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / NAME).open("a+", encoding="utf-8")
        if not lock(file, time.monotonic() + patience):
            raise UserError(f"{folder}: {holder(file)}; wait for its end, or stop it first")
    except (OSError, UserError) as error:
        if file is not None:
            file.close()
        if isinstance(error, UserError):
            raise
        say(f"{folder}: cannot be locked ({(error.strerror or str(error)).lower()}); train into it only once at a time")
        return None
    sign(file)
    return file


def lock(file: TextIO, until: float) -> bool:
    """Whether the file could be locked by then. OSError where no file can be."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except (BlockingIOError, PermissionError):  # EAGAIN; EACCES on some systems
            if time.monotonic() >= until:
                return False
        time.sleep(PAUSE)


def sign(file: TextIO) -> None:
    """Say who holds the lock; a full disk leaves it nameless."""
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        file.flush()


def holder(file: TextIO) -> str:
    """Who holds the lock, in words."""
    try:
        file.seek(0)
        known = json.load(file)
        where = "" if known["host"] == socket.gethostname() else f" on {known['host']}"
        return f"process {known['pid']}{where} is training in it"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process is training in it"
