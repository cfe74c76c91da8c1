"""Runs on disk, the unfinished and the damaged ones too: found by config.toml and metrics.jsonl, read, compared."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from gpt2 import config as settings
from gpt2.errors import UserError
from gpt2.model.config import GPTConfig
from gpt2.model.sizes import parameters
from gpt2.train.config import TrainConfig
from gpt2.train.metrics import NAME, numbers, parse
from gpt2.train.plots import recent

DEPTH = 4  # folders below the one that is searched
HEADER = b"# Resolved settings of this run"  # config.toml's first words, written by pretrain
SKIPPED = ("node_modules", "__pycache__", "tensorboard", "wandb", "site-packages")


@dataclass(frozen=True)
class PastRun:
    """What a run's folder tells. Figures that it does not tell are None; `fault` says what is wrong with it."""

    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)  # by full name: "optim.learning_rate"
    lines: Sequence[Mapping[str, Any]] = ()
    when: float | None = None  # Unix time of the last line
    fault: str | None = None

    @property
    def name(self) -> str:
        """As one would type it here."""
        here = Path.cwd()
        folder = self.folder if self.folder.is_absolute() else here / self.folder
        if folder != here and folder.is_relative_to(here):
            return str(folder.relative_to(here))
        return str(folder)

    @property
    def step(self) -> int:
        return max((line["step"] for line in self.lines), default=0)

    @property
    def max_steps(self) -> int | None:
        value = self.settings.get("max_steps")
        return value if isinstance(value, int) else None

    @property
    def state(self) -> str:
        if self.fault:
            return self.fault
        ended = any(line["step"] >= self.step for line in self.lines if "ended" in line)  # by patience
        return "done" if ended or (self.max_steps is not None and self.step >= self.max_steps) else "unfinished"

    def figures(self) -> dict[str, Any]:
        """Everything that a table or a program wants to know, by name; seconds are of training."""
        best = min(
            (line for line in self.lines if numbers([line], "val/loss")), key=lambda line: line["val/loss"], default={}
        )
        return {
            "name": self.name,
            "state": self.state,
            "parameters": count_parameters(self.settings) or parameters_of(self),
            "step": self.step,
            "max_steps": self.max_steps,
            "tokens": round(last(self.lines, "tokens") or 0),
            "train_loss": recent(numbers(self.lines, "train/loss")),
            "val_loss": best.get("val/loss"),
            "bits_per_byte": next(iter(numbers([best], "val/bits_per_byte")), None),
            "best_step": best.get("step"),
            "tokens_per_second": median(numbers(self.lines, "tokens_per_second")),
            "mfu": median(numbers(self.lines, "mfu")),
            "seconds": last(self.lines, "elapsed"),
            "when": self.when,
        }


def find_runs(places: Sequence[Path]) -> list[Path]:
    """Folders that are runs, the given ones or up to DEPTH levels below; each once. UserError for one that is none."""
    found: dict[Path, Path] = {}
    for place in places:
        if not place.is_dir():
            raise UserError(f"{place}: no such folder")
        for folder in walk(place, DEPTH, set()):
            if is_run(folder):
                found.setdefault(folder.resolve(), folder)
    return list(found.values())


def walk(folder: Path, depth: int, seen: set[Path]) -> Iterator[Path]:
    """The folder and those below it, links followed, nothing twice; not those of steps, trackers and tools."""
    real = folder.resolve()
    if real in seen:
        return
    seen.add(real)
    yield folder
    if depth == 0:
        return
    try:
        with os.scandir(folder) as entries:
            below = sorted(entry.name for entry in entries if entry.is_dir() and worth_a_look(entry.name))
    except OSError:  # a folder of somebody else
        return
    for name in below:
        yield from walk(folder / name, depth - 1, seen)


def worth_a_look(name: str) -> bool:
    return not name.startswith((".", "step_")) and name not in SKIPPED and name not in ("best", "last")


def is_run(folder: Path) -> bool:
    """Both files; or one of them, if it is plainly a run's."""
    config, metrics = folder / "config.toml", folder / NAME
    if config.is_file() and metrics.is_file():
        return True
    return begins_with(config, HEADER) or begins_with(metrics, b'{"step": ')


def begins_with(path: Path, start: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(start)) == start
    except OSError:
        return False


def read_run(folder: Path) -> PastRun:
    """Never an error: what cannot be read is the run's `fault`."""
    faults: list[str] = []
    known: dict[str, Any] = {}
    lines: list[dict[str, Any]] = []
    when: float | None = None
    try:
        known = flatten(settings.load_toml(folder / "config.toml"))
    except (UserError, OSError):
        missing = not (folder / "config.toml").exists()
        faults.append("no config.toml" if missing else "config.toml cannot be read")
    try:
        lines, unreadable = parse(folder / NAME)
        when = last(lines, "time") or (folder / NAME).stat().st_mtime
        if unreadable > 1:  # one is what a kill leaves
            faults.append(f"{unreadable} lines of {NAME} cannot be read")
    except OSError as error:
        faults.append(f"no {NAME}" if isinstance(error, FileNotFoundError) else f"{NAME} cannot be read")
    return PastRun(folder, known, lines, when, "; ".join(faults) or None)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, by full name."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found.update(flatten(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found


def count_parameters(known: Mapping[str, Any]) -> int | None:
    """Of the model that the settings describe; None where they do not."""
    names = {part.name for part in fields(GPTConfig)}
    shape = {key[6:]: value for key, value in known.items() if key.startswith("model.") and key[6:] in names}
    try:
        return parameters(GPTConfig(**shape)) if shape else None
    except (UserError, TypeError, ValueError):
        return None


def parameters_of(run: PastRun) -> int | None:
    """Of a fine-tuned model, as its last checkpoint has it, or its base where that is an adapter; else None."""
    from gpt2.checkpoint.hf_config import read_config

    base = run.settings.get("model")
    for folder in (run.folder / "last", *([Path(base)] if isinstance(base, str) and base else [])):
        try:
            return parameters(read_config(folder))
        except (UserError, OSError):
            continue
    return None


def differing(runs: Sequence[PastRun]) -> list[str]:
    """Full names of the settings in which the readable runs differ, in the order of TrainConfig; `out` always does."""
    readable = [run.settings for run in runs if run.settings]
    names = dict.fromkeys([*settings.leaves(TrainConfig), *(name for known in readable for name in known)])
    return [name for name in names if name != "out" and len({repr(value_of(known, name)) for known in readable}) > 1]


def value_of(known: Mapping[str, Any], name: str) -> Any:
    """As the run has it; a run older than the setting had its default."""
    return known.get(name, defaults().get(name))


@cache
def defaults() -> dict[str, Any]:
    return flatten(settings.to_tree(TrainConfig()))


def last(lines: Sequence[Mapping[str, Any]], key: str) -> float | None:
    return next(reversed(numbers(lines, key)), None)


def median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
