"""`gpt2 runs`: what has been trained here, side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt2.errors import UserError
from gpt2.runtime import say

if TYPE_CHECKING:
    from gpt2.train.runs import PastRun

SORTS = {  # --sort's word -> the figure, and whether the largest comes first
    "val": ("val_loss", False),
    "bits": ("bits_per_byte", False),
    "train": ("train_loss", False),
    "name": ("name", False),
    "params": ("parameters", True),
    "tokens": ("tokens", True),
    "speed": ("tokens_per_second", True),
    "mfu": ("mfu", True),
    "time": ("seconds", True),
    "when": ("when", True),
}


@click.command("runs")
@click.argument("folders", nargs=-1, metavar="[FOLDER ...]")
@click.option("--sort", default="val", show_default=True, type=click.Choice(list(SORTS)), help="What comes first.")
@click.option("--plot", metavar="FILE.png", help="Draw all losses, against tokens and against time, into this file.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of tables: a list, with every setting.")
def command(folders: tuple[str, ...], sort: str, plot: str | None, as_json: bool) -> None:
    """List and compare runs.

    Looks for them in the FOLDERs, or here, and four levels below: folders with config.toml and metrics.jsonl. The
    validation loss is a run's best (nats per token; bits per byte where the text's size is known), the training loss
    the mean of its last thirtieth; speeds are medians. Below: the settings in which the runs differ.

    \b
    Examples:
      gpt2 runs
      gpt2 runs runs --sort when
      gpt2 runs runs/my --plot losses.png
      gpt2 runs --json
    """
    if plot is not None and not plot.endswith(".png"):
        raise UserError(f"--plot {plot}: the name must end in .png")
    from gpt2.train.runs import find_runs, read_run

    found = [read_run(folder) for folder in find_runs([Path(folder).expanduser() for folder in folders or ["."]])]
    runs = ordered(found, *SORTS[sort])
    if plot is not None:
        write_plot(Path(plot).expanduser(), runs)
    if as_json:
        click.echo(json.dumps([run.figures() | {"settings": dict(run.settings)} for run in runs], indent=1))
    elif runs:
        click.echo(as_tables(runs))
    else:
        say(f"no runs in {', '.join(folders) or 'this folder'} or below; gpt2 train makes one")


def ordered(runs: Sequence[PastRun], figure: str, largest_first: bool) -> list[PastRun]:
    """By one figure; runs that do not have it come last, by name."""
    values = {id(run): run.figures()[figure] for run in runs}
    by_name = sorted(runs, key=lambda run: run.name)
    known = [run for run in by_name if values[id(run)] is not None]
    known.sort(key=lambda run: values[id(run)], reverse=largest_first)
    return known + [run for run in by_name if values[id(run)] is None]


def write_plot(path: Path, runs: Sequence[PastRun]) -> None:
    from gpt2 import atomic
    from gpt2.train.plots import draw_runs, points

    drawn = [(run.name, run.lines) for run in runs if points(run.lines, "train/loss")[0]]
    if not drawn:
        raise UserError(f"--plot {path}: no run here has a training loss to draw")
    atomic.write_bytes(path, draw_runs(drawn))
    say(f"{path}: {len(drawn)} run{'s' * (len(drawn) > 1)}")


def as_tables(runs: Sequence[PastRun]) -> str:
    """The runs, then the settings in which they differ."""
    rows = [[text for _, text in cells(run)] for run in runs]
    parts = [columns([name for name, _ in cells(runs[0])], rows)]
    if differences := settings_table(runs):
        parts.append(differences)
    return "\n\n".join(parts)


def cells(run: PastRun) -> list[tuple[str, str]]:
    """(column, text) of one run."""
    from gpt2.train.words import clock, short

    figures = run.figures()

    def shown(key: str, form: Callable[[Any], str]) -> str:
        return "-" if figures[key] is None else form(figures[key])

    return [
        ("run", figures["name"]),
        ("params", shown("parameters", short)),
        ("steps", f"{figures['step']:,}/" + shown("max_steps", "{:,}".format)),
        ("tokens", shown("tokens", short)),
        ("train", shown("train_loss", "{:.4f}".format)),
        ("val", shown("val_loss", "{:.4f}".format)),
        ("bits/byte", shown("bits_per_byte", "{:.4f}".format)),
        ("tokens/s", shown("tokens_per_second", "{:,.0f}".format)),
        ("mfu", shown("mfu", "{:.0%}".format)),
        ("time", shown("seconds", clock)),
        ("when", shown("when", lambda value: time.strftime("%Y-%m-%d %H:%M", time.localtime(value)))),
        ("state", figures["state"]),
    ]


def settings_table(runs: Sequence[PastRun]) -> str | None:
    """Runs down and settings across, or the other way where that is narrower; None where the runs are alike."""
    from gpt2.train.runs import differing, value_of

    names = differing(runs)
    if not names:
        return None
    readable = [run for run in runs if run.settings]
    rows = [[run.name, *(as_text(value_of(run.settings, name)) for name in names)] for run in readable]
    rows.insert(0, ["run", *(leaf(name, names) for name in names)])
    layouts = [columns(rows[0], rows[1:]), columns(*split(zip(*rows, strict=True)))]
    return min(layouts, key=lambda text: len(text.partition("\n")[0]))


def split(table: Iterable[Sequence[str]]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Head and rows."""
    head, *rows = table
    return head, rows


def leaf(name: str, names: Sequence[str]) -> str:
    """Its last part, if no other has the same."""
    short_name = name.rpartition(".")[2]
    return short_name if sum(other.rpartition(".")[2] == short_name for other in names) == 1 else name


def as_text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ",".join(map(as_text, value)) or "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Names and states to the left, numbers to the right."""
    right = [all(row[i][:1] in "-0123456789" for row in rows) for i in range(len(head))]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    form = "  ".join(f"{{:{'>' if side else '<'}{width}}}" for side, width in zip(right, widths, strict=True))
    return "\n".join(form.format(*row).rstrip() for row in [head, *rows])
