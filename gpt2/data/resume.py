"""What a `prepare` that was killed leaves behind, so that the same command goes on where it stopped.

All work is done in `OUT/.prepare` and moved into place at the end. There lie the split's draws, the trained
tokenizer, the growing shards, and `journal.json`, which says up to where the shards can be trusted.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from gpt2.atomic import sync, write_text
from gpt2.errors import UserError
from gpt2.runtime import say

Tree = dict[str, Any]


class Work:
    """The working folder of one `prepare`, known by the fingerprint of its arguments and sources."""

    def __init__(self, out: Path, fingerprint: str) -> None:
        self.out, self.folder = out, out / ".prepare"
        if self.folder.exists():
            if self.read("plan") == {"fingerprint": fingerprint}:
                say(f"{out}: going on where an interrupted run stopped")
                return
            if self.read("plan") is not None:
                say(f"{out}: an interrupted run had other arguments or sources; starting anew")
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        self.write("plan", {"fingerprint": fingerprint})

    def read(self, name: str) -> Tree | None:
        """A step's result, or None where it has not been finished."""
        try:
            tree: Tree = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return tree

    def write(self, name: str, tree: Tree) -> None:
        write_text(self.folder / f"{name}.json", json.dumps(tree) + "\n")

    def fresh_folder(self, name: str) -> Path:
        """An empty folder to fill and then `keep`."""
        folder = self.folder / f"{name}.tmp"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def keep(self, name: str) -> Path:
        """The folder of that name is whole now."""
        return (self.folder / f"{name}.tmp").rename(self.folder / name)

    def publish(self, names: list[str], old: list[str]) -> None:
        """Move results into `out`, `meta.json` last: it alone makes the folder a whole one.

        `old` are an earlier dataset's files. Can itself be interrupted anywhere and done again.
        """
        plan = self.read("publish") or {"names": names, "old": sorted(set(old) - set(names))}
        self.write("publish", plan)
        if (self.folder / "meta.json").exists():
            (self.out / "meta.json").unlink(missing_ok=True)
        for name in plan["old"]:
            _remove(self.out / name)
        for name in [*plan["names"], "meta.json"]:
            if (self.folder / name).exists():
                _remove(self.out / name)
                (self.folder / name).rename(self.out / name)
        sync(self.out)
        shutil.rmtree(self.folder)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse_strangers(out: Path) -> None:
    """Raise UserError where `out` holds shards that no `prepare` of ours wrote: they would be overwritten."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    if (out / "meta.json").exists() or (out / ".prepare").exists():
        return
    for stranger in [*sorted(out.glob("*.bin")), *out.glob("tokenizer")]:
        raise UserError(f"--out {out}: holds {stranger.name} that gpt2 prepare did not write; choose another folder")
