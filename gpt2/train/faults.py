"""What went wrong with a run, in a user's words: the fault, and where the last good checkpoint is."""

from __future__ import annotations

import errno
from pathlib import Path
from shlex import quote

from gpt2.checkpoint.train_state import newest_good_step, steps

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_error(error: OSError) -> str:
    """What a failed write means to the user."""
    full = error.errno in FULL or any(text in str(error) for text in ("No space left", "File too large"))
    return f"the disk is full ({error.filename or 'while writing'})" if full else f"a write failed: {error}"


def last_good(run: Path, command: str = "train") -> str:
    """For an error's end: where the last good checkpoint is and how to go on from it, by the command that trains."""
    good = newest_good_step(run) if any(steps(run)) else None
    if good is None:
        return "there is no checkpoint before it"
    return f"the last good checkpoint is {good}; go on with: gpt2 {command} --resume {quote(str(run))}"
