"""`gpt2 evaluate`: benchmarks by a named protocol, with a report that sets them beside the published figures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt2.cli.writing import SETTINGS, model_options, named, weights_options
from gpt2.errors import UserError
from gpt2.runtime import say

if TYPE_CHECKING:
    from gpt2.evaluate.data import Form, Hub
    from gpt2.evaluate.score import Scores


def words(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    """Names apart by commas."""
    return tuple(part for part in re.split(r"[,\s]+", value) if part)


@click.command("evaluate", context_settings=SETTINGS)
@model_options
@weights_options
@click.option(
    "--suite", default="quick", show_default=True, metavar="NAME|FILE", help="quick, gpt2-paper, gpt3-paper, or a file."
)
@click.option("--data", multiple=True, metavar="FOLDER", help="Where data files lie; may be given several times.")
@click.option("--out", metavar="FOLDER", help="Where results go. Without it: evaluations/MODEL-SUITE.")
@click.option("--tasks", default="", callback=words, metavar="A,B", help="Only these tasks, of the suite or of others.")
@click.option("--protocol", default="paper", show_default=True, metavar="paper|harness|both", help="How to ask.")
@click.option(
    "--shots",
    default="",
    callback=words,
    metavar="K,...",
    help="Examples before each item: zero, one, few (the paper's K), numbers.",
)
@click.option("--limit", default=0, metavar="N", help="Only the first N items of each task; of a text, lines.")
@click.option("--window", default=0, metavar="N", help="Tokens that a text is read in [the model's context].")
@click.option("--stride", default=0, metavar="N", help="Tokens from one window to the next [the window].")
@click.option("--seed", default=0, show_default=True, help="For examples, draws and standard errors.")
@click.option("--tokenizer", metavar="MODEL", help="Of a model behind a URL; without it GPT-2's own.")
@click.option("--beside", multiple=True, metavar="FILE", help="results.json of another model, for the plots.")
@click.option("--list", "list_", is_flag=True, help="Print all tasks with their protocols and files, and stop.")
def command(list_: bool, **flags: Any) -> None:
    """Measure a model on benchmarks, by the papers' protocols or lm-evaluation-harness's.

    Suites: quick (ten tasks), gpt2-paper (Table 3 and the other figures of GPT-2's paper), gpt3-paper (zero-shot and
    few-shot, with the paper's K), or a TOML file with tasks of your own (docs/evaluation.md shows one). Data is read
    from the folders of --data, by its official file names, else fetched from the Hugging Face hub; nothing is bundled.
    A task without data is left out and named.

    Results go to FOLDER/results.json, report.md and report.html. The same command again goes on where a run ended.
    --model may also be the URL of a server with /v1/completions. On a processor the weights are read in float32;
    --weights int8 is about three times as fast.

    \b
    Examples:
      gpt2 evaluate --model runs/my --data benchmarks --limit 20 --out evaluations/my
      gpt2 evaluate --model runs/my --suite my-suite.toml --weights float32
      gpt2 evaluate --model gpt2 --suite gpt2-paper --data benchmarks --protocol both # needs network
      gpt2 evaluate --model http://localhost:8000 --tasks piqa,copa --data benchmarks # needs network
      gpt2 evaluate --list
    """
    if list_:
        click.echo(catalogue())
        return
    evaluate(flags)


def evaluate(flags: dict[str, Any]) -> None:
    from gpt2.evaluate.report import left_out, write_report
    from gpt2.evaluate.runs import Options, Suite
    from gpt2.evaluate.suites import find_jobs

    for name in ("limit", "window", "stride", "seed"):
        if flags[name] < 0:
            raise UserError(f"--{name} {flags[name]}: must be at least 0")
    jobs, strict, skipped = find_jobs(flags["suite"], flags["protocol"], flags["shots"], flags["tasks"])
    folders = tuple(Path(folder).expanduser() for folder in flags["data"])
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--data {folder}: no such folder")
    beside = [read_results(Path(path).expanduser()) for path in flags["beside"]]
    scores, about = subject(flags)
    options = Options(folders, flags["limit"], flags["seed"], flags["window"], flags["stride"])
    out = Path(flags["out"]).expanduser() if flags["out"] else default_out(about["name"], flags["suite"])
    out.mkdir(parents=True, exist_ok=True)
    found = Suite(jobs, scores, about, options, out, strict, skipped).run()
    path = write_report(out, found, beside)
    for reason in left_out(found):
        say(f"left out: {reason}")
    click.echo(summary(found))
    say(f"{path}")


def subject(flags: dict[str, Any]) -> tuple[Callable[[], Scores], dict[str, Any]]:
    """Who is asked, made on first use, and what the results say of it."""
    name = flags["model"]
    if name is not None and name.startswith(("http://", "https://")):
        refuse_what_the_server_decides()
        from gpt2.evaluate.remote import connect

        return connect(name, flags["tokenizer"])
    if flags["tokenizer"] is not None:
        raise UserError("--tokenizer: only a model behind a URL has none of its own; leave it out")
    from functools import cache

    from gpt2.cli.writing import load_model
    from gpt2.evaluate.score import Scorer
    from gpt2.evaluate.subject import about, exact

    model = exact(load_model(flags))
    return cache(lambda: Scorer(model)), about(model, str(name or model.folder))


def refuse_what_the_server_decides() -> None:
    """UserError for a flag that says how a model is read, where it is read by a server: it would do nothing."""
    given = [f"--{flag}" for flag in ("weights", "kv", "device", "dtype", "adapter") if named(flag)]
    if given:
        raise UserError(f"{', '.join(given)}: a server reads its model its own way; beside a URL leave this out")


def default_out(model: str, suite: str) -> Path:
    parts = [part for part in re.split(r"[/\\:]+", model) if part not in ("", ".", "..")]
    return Path("evaluations") / f"{'-'.join(parts[-2:]) or 'model'}-{Path(suite).stem}"


def read_results(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"model": found["model"], "results": found["results"]}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"--beside {path}: not a results.json of gpt2 evaluate") from None


def summary(found: dict[str, Any]) -> str:
    """A table for the terminal."""
    from gpt2.cli.runs import columns
    from gpt2.evaluate.report import lines

    rows = [
        [line.task, line.protocol, str(line.shots), line.metric, line.ours, line.theirs or "-", line.difference or "-"]
        for line in lines(found)
    ]
    return columns(["task", "protocol", "K", "metric", "ours", "published", "difference"], rows)


def catalogue() -> str:
    from gpt2.evaluate.protocols import TITLES
    from gpt2.evaluate.tasks import CATALOGUE

    rows: list[Sequence[str]] = []
    for name, task in CATALOGUE.items():
        asked = ", ".join(TITLES[protocol] for protocol in task.asks if protocol in TITLES)
        files = data_names(task.forms, task.hub)
        for protocol, source in task.sources.items():
            files += f" | {TITLES[protocol]}: {data_names(*source)}"
        rows.append([name, asked, files])
    return "\n".join(f"{row[0]:18} {row[1]:40} {row[2]}" for row in rows)


def data_names(forms: Sequence[Form], hub: Hub | None) -> str:
    """Where a task's data may lie."""
    return " | ".join([*(" + ".join(form.named) for form in forms), *([f"hub: {hub.id}"] if hub else [])])
