"""`gpt2 scale`: a ladder of small models, a law through their losses, and a larger model held to it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from gpt2.cli.inspect import table
from gpt2.errors import UserError

if TYPE_CHECKING:
    from gpt2.model.config import GPTConfig
    from gpt2.train.climb import Prediction
    from gpt2.train.ladder import Plan
    from gpt2.train.scaling import Point

VOCABULARY = 2048  # of a text that is prepared here: more would make the small sizes all embedding
# Of the smallest size, where nobody says: the first with which the largest does not read the text too often.
WIDTHS = 32, 48, 64, 96, 128
SHORT_TOKENS = 2048  # of the smallest size under GPT2_SHORT=1, which the tests of the documentation set


@click.command("scale")
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option("--out", default="gpt2-scale", show_default=True, help="Folder for tokens, runs, picture and figures.")
@click.option("--minutes", type=float, default=15.0, show_default=True, help="Time for all of it.")
@click.option("--sizes", type=click.IntRange(2, 8), help="To fit the law through; else 5 to 3, by the time.")
@click.option("--base", type=click.IntRange(8), help="Width of the smallest size; else 32, or more if text is short.")
@click.option("--seed", default=1337, show_default=True, help="Of weights and data order.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
def command(
    sources: tuple[str, ...], out: str, minutes: float, sizes: int | None, base: int | None, **flags: Any
) -> None:
    """Fit the power law of loss against compute with small models, and hold a larger one to it.

    Several sizes are trained on the same text, each on the same number of tokens a parameter; laws of the form floor +
    A x^-b are fitted to their held-out losses against parameters, tokens and compute, the floor being the published one
    of text (Hoffmann et al. 2022). The loss of one more size, with at least twice the parameters of the largest, is
    written to OUT/prediction.json before that size is trained; then it is. SOURCE is a folder made by gpt2 prepare, or
    anything that gpt2 prepare reads; without one, stdlib:.

    A table goes to standard output, the same as JSON to OUT/scaling.json, and GPT-3's figure to OUT/scaling.png.
    Interrupted, the same command goes on where it was.

    \b
    Examples:
      gpt2 scale
      gpt2 scale my.txt --out my-scale --minutes 5 --sizes 3
      gpt2 scale data --out wide --minutes 60 --base 48
    """
    from gpt2.runtime import say
    from gpt2.train.climb import Stopped, climb

    begin, folder = time.monotonic(), Path(out)
    refuse_processes()
    plan = read_or_make_plan(sources, folder, minutes, sizes, base, flags)
    try:
        prediction, found = climb(plan, folder)
    except Stopped as stop:
        say(f"go on with: gpt2 scale --out {quote(out)}")
        raise click.exceptions.Exit(130 if stop.by == signal.SIGINT else 0) from None
    write_results(plan, prediction, found, folder)
    click.echo(render(prediction, found))
    say(f"{folder / 'scaling.png'} and {folder / 'scaling.json'}, after {(time.monotonic() - begin) / 60:.1f} minutes")


def refuse_processes() -> None:
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("gpt2 scale trains small models in one process; start it without torchrun")


def read_or_make_plan(
    sources: tuple[str, ...], folder: Path, minutes: float, sizes: int | None, base: int | None, flags: dict[str, Any]
) -> Plan:
    """As it was begun, or made now: the text prepared, every size measured, its tokens dealt out."""
    from gpt2.data.shards import read_meta
    from gpt2.runtime import say
    from gpt2.train.climb import make_plan
    from gpt2.train.ladder import SIZES, Plan, shapes

    path, begin = folder / "plan.json", time.monotonic()
    if path.exists():
        say(f"{folder}: goes on as it was begun; for a new one name another --out")
        return Plan.read(path)
    if minutes <= 0:
        raise UserError(f"--minutes {minutes}: must be above 0")
    data = prepared(sources, folder)
    vocab_size, counts = read_meta(data).vocab_size, [sizes] if sizes else SIZES
    narrow, *widths = [base] if base else WIDTHS
    ladders = [shapes(count, narrow, vocab_size) for count in counts]
    wider = [shapes(counts[0], width, vocab_size) for width in widths]
    draft = Plan(str(data.resolve()), **flags)
    if os.environ.get("GPT2_SHORT"):
        plan = short_plan(draft, ladders[-1])
    else:
        plan = make_plan(draft, ladders, 60 * minutes - (time.monotonic() - begin), folder, wider)
    folder.mkdir(parents=True, exist_ok=True)
    plan.write(path)
    return plan


def short_plan(draft: Plan, models: Sequence[GPTConfig]) -> Plan:
    """A step for the smallest size, two for each other: a law needs two numbers of tokens."""
    from gpt2.runtime import say
    from gpt2.train.ladder import make_rung

    say("GPT2_SHORT is set: a step or two for each size only")
    rungs = tuple(make_rung(number, model, min(number, 2) * SHORT_TOKENS) for number, model in enumerate(models, 1))
    return replace(draft, held_out_tokens=SHORT_TOKENS, rungs=rungs)


def prepared(sources: tuple[str, ...], folder: Path) -> Path:
    """The folder of tokens: the one that was named, or made of the texts that were."""
    from gpt2.data.prepare import prepare

    if len(sources) == 1 and any((Path(sources[0]) / name).is_file() for name in ("meta.json", "train.bin")):
        return Path(sources[0])
    prepare(sources or ("stdlib:",), folder / "data", tokenizer=f"train:{VOCABULARY}")
    return folder / "data"


def write_results(plan: Plan, prediction: Prediction, found: Point, folder: Path) -> None:
    """scaling.json and scaling.png."""
    from gpt2 import atomic
    from gpt2.train.metrics import read_metrics
    from gpt2.train.scaling_plot import Curve, draw_ladder

    points = (*prediction.points, found)
    curves = [
        Curve(point, rung.flops_per_token, read_metrics(folder / rung.name))
        for point, rung in zip(points, plan.rungs, strict=True)
    ]
    picture = draw_ladder(curves, prediction.laws["compute"], prediction.loss)
    atomic.write_bytes(folder / "scaling.png", picture)
    report = {
        "plan": asdict(plan),
        "points": [asdict(point) for point in points],
        "laws": {name: asdict(law) for name, law in prediction.laws.items()},
        "predicted": prediction.loss,
        "predicted_by": prediction.by,
        "prediction_written": prediction.written,
        "measured": found.loss,
        "error": prediction.loss / found.loss - 1,
        "error_of_same_as_largest": prediction.same_as_largest / found.loss - 1,
    }
    atomic.write_text(folder / "scaling.json", json.dumps(report, indent=1) + "\n")


def render(prediction: Prediction, found: Point) -> str:
    """The sizes, the laws, and the prediction beside what came of it."""
    return "\n\n".join([_sizes((*prediction.points, found)), _laws(prediction), _outcome(prediction, found)])


def _sizes(points: tuple[Point, ...]) -> str:
    head = ["size", "parameters", "not embedding", "tokens", "FLOPs", "held-out loss"]
    rows = [
        [p.name, f"{p.parameters:,}", f"{p.non_embedding:,}", f"{p.tokens:,}", f"{p.flops:.3g}", f"{p.loss:.4f}"]
        for p in points
    ]
    return table(head, rows)


def _laws(prediction: Prediction) -> str:
    rows = [[f"{name} x", f"L = {law}", f"{prediction.by[name]:.4f}"] for name, law in prediction.laws.items()]
    return table(["loss against", "law (nats per token)", f"says of {prediction.name}"], rows)


def _outcome(prediction: Prediction, found: Point) -> str:
    def against(loss: float) -> str:
        return f"{loss:.4f}, {loss / found.loss - 1:+.1%} of {found.loss:.4f}"

    return (
        f"predicted by compute, before its training: {against(prediction.loss)}\n"
        f"the same loss as the largest fitted size:  {against(prediction.same_as_largest)}"
    )
