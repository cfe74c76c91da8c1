"""The one exception that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: one line that says what is wrong, where, and what to do.

    The command line prints it without a traceback (`--debug` shows one) and exits with code 2.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" (did you mean 'n_layer'?)"` for the nearest of the known names, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
