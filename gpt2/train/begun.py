"""Which command made a folder a run: whether the one that is running now may begin there, or goes on with its own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from gpt2 import config as settings
from gpt2.distributed.launch import job, restarted
from gpt2.distributed.ranks import Ranks
from gpt2.errors import UserError
from gpt2.train.save import ASKED_FOR, write_settings
from gpt2.train.settings import RunSettings


def refuse_a_run(out: Path) -> None:
    if (out / "config.toml").exists():
        raise UserError(f"{out}: holds a run already; go on with it by --resume {out}, or choose another --out")


def begin(out: Path, config: RunSettings, wanted: RunSettings) -> None:
    """Make the folder a run; another that began while this one was being built comes first."""
    refuse_a_run(out)
    write_settings(out, config, mark(wanted))


def rewrite(out: Path, config: RunSettings) -> None:
    """The run's settings as a later command has changed them; what began it stays."""
    write_settings(out, config, read_mark(out) or "")


def goes_on(peers: Ranks, out: Path, wanted: RunSettings) -> bool:
    """Whether these processes go on with the run in the folder: they, or others of their job, have begun it."""
    again = restarted(peers)
    return peers.share(peers.attempt(lambda: peers.is_main and began(out, wanted, again)))


def began(out: Path, wanted: RunSettings, again: bool) -> bool:
    """Whether this very command began the run in the folder, before its processes were started anew.

    That they were is known (`again`), or the job says it: a machine that takes another's place has the same job. False
    where there is no run. UserError for a run of other settings: nobody asked for it to go on.
    """
    found = read_mark(out)
    if found is None:
        return False
    command, _, by_job = found.partition(".")
    if again and command not in ("", asked_for(wanted)):
        refuse_a_run(out)
    return again or (by_job != "" and found == mark(wanted))


def mark(wanted: RunSettings) -> str:
    """What tells the settings of one command from another's, and after a point its job from others, if it is of one."""
    return asked_for(wanted) + (f".{short_hash(job())}" if job() else "")


def asked_for(wanted: RunSettings) -> str:
    """Of the settings before anything was resolved."""
    return short_hash(json.dumps(settings.to_tree(wanted), sort_keys=True, default=str))


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_mark(out: Path) -> str | None:
    """The mark of the run in the folder, empty where it has none; None where there is no run."""
    path = out / "config.toml"
    if not path.exists():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.removeprefix(ASKED_FOR) for line in lines if line.startswith(ASKED_FOR)), "")
