"""From what a user types after `--model` to a folder on this machine."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from gpt2.errors import UserError
from gpt2.model.presets import HUB_IDS
from gpt2.runtime import say

PATTERNS = ["*.json", "*.jinja", "*.safetensors", "*.txt", "vocab.bpe"]
MARKS = ("config.json", "adapter_config.json")  # a folder with one of them holds a model, or an adapter for one
OLD_WEIGHTS = ["pytorch_model*.bin"]  # fetched only where there are no safetensors


def find_folder(name: str | Path) -> Path:
    """A model folder, a run's folder (its best, else its last step), or a Hugging Face id (fetched or cached)."""
    path = Path(name).expanduser()
    if path.is_file():
        raise UserError(f"{path}: a file; a model is a folder with config.json and model.safetensors")
    text = str(name)
    if path.is_dir() and (text not in HUB_IDS or holds_model(path)):  # a clone of this package has a folder gpt2 too
        return run_step(path)
    looks_local = text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text
    if looks_local or (text not in HUB_IDS and "/" not in text):
        raise UserError(f"{text}: no such folder, and not a Hugging Face id (short ones: {', '.join(HUB_IDS)})")
    return fetch(HUB_IDS.get(text, text))


def run_step(path: Path) -> Path:
    """The folder itself if it holds a model, else the step that its `best` or `last` names."""
    if marked(path):
        return path
    for name in ("best", "last"):
        step = follow(path / name)
        if step is not None:
            return step
    raise UserError(f"{path}: neither a model folder (no config.json) nor a run with a finished step")


def holds_model(path: Path) -> bool:
    """Whether `run_step` would find one."""
    return marked(path) or any(follow(path / name) for name in ("best", "last"))


def follow(link: Path) -> Path | None:
    """Where `best` or `last` points: a link, or a one-line file on systems without links."""
    if link.is_file() and not link.is_symlink():
        link = link.parent / link.read_text(encoding="utf-8").strip()
    return link.resolve() if marked(link) else None


def marked(folder: Path) -> bool:
    return any((folder / mark).is_file() for mark in MARKS)


def point(link: Path, target: Path) -> None:
    """Make `best` or `last` name a step folder beside it, atomically.

    A copy of a run that followed its links has a folder there: it is kept under another name, and said.
    """
    if link.is_dir() and not link.is_symlink():
        aside = next(name for n in itertools.count(1) if not (name := link.with_name(f"{link.name}.copy{n}")).exists())
        link.rename(aside)
        say(f"{link}: a folder where a link belongs, from a copy that followed it; kept as {aside.name}")
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target.name, target_is_directory=True)
    except (OSError, NotImplementedError):  # Windows without the right to make links
        temporary.write_text(target.name + "\n", encoding="utf-8")
    temporary.replace(link)


def fetch(hub_id: str) -> Path:
    """The newest snapshot of a Hugging Face model, from the cache where there is no network."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=PATTERNS))
        if not any(folder.glob("*.safetensors")):
            huggingface_hub.snapshot_download(hub_id, allow_patterns=OLD_WEIGHTS)
        return folder
    except LocalEntryNotFoundError:
        raise UserError(
            f"{hub_id}: not in the Hugging Face cache and the network cannot be reached; put config.json, "
            "model.safetensors, vocab.json and merges.txt into a folder and name that folder instead"
        ) from None
    except (HfHubHTTPError, ValueError) as error:
        raise UserError(f"{hub_id}: Hugging Face says: {str(error).splitlines()[0]}") from None


def newest_model(where: Path | None = None) -> Path:
    """The model that `gpt2 "a prompt"` means: GPT2_MODEL, else the newest run in this folder, else cached GPT-2."""
    if os.environ.get("GPT2_MODEL"):
        return find_folder(os.environ["GPT2_MODEL"])
    where = where or Path.cwd()
    links = [*where.glob("last"), *where.glob("*/last"), *where.glob("*/*/last")]
    found = [step for step in map(follow, links) if step is not None]
    if found:
        newest = max(found, key=lambda step: step.stat().st_mtime)
        return run_step(newest.parent)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(HUB_IDS["gpt2"], "model.safetensors")
    if isinstance(cached, str):
        return Path(cached).parent
    raise UserError("no model here yet: make one with `gpt2 demo`, or name one with --model (a folder or a hub id)")
