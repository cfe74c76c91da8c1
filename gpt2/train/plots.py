"""Pictures of runs: SVG for a page, PNG for a file. Each takes lines of metrics.jsonl, old ones or new, and is pure."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from gpt2.train.metrics import is_number
from gpt2.train.words import clock, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Lines = Sequence[Mapping[str, Any]]
SPAN = 1 / 30  # of the run: what a mean is taken over
MOST_POINTS = 1200  # of a curve: more than a screen has columns
INK, FAINT, MARK, GRID = "#2f6f9f", "#9fc3dc", "#d9722b", "#e4e4e8"
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "gpt2", "font.family": "sans-serif", "font.size": 10}


def points(lines: Lines, y: str, x: str = "tokens") -> tuple[list[float], list[float]]:
    """(x, y) of the lines that have both as finite numbers."""
    both = [(float(line[x]), float(line[y])) for line in lines if is_number(line.get(x)) and is_number(line.get(y))]
    return [a for a, _ in both], [b for _, b in both]


def smooth(values: Sequence[float]) -> list[float]:
    """Each with the mean of its neighbours on both sides, as many as there are: a curve that does not lag behind."""
    reach = round(SPAN * len(values) / 2)
    sums = list(accumulate(values, initial=0.0))
    out = []
    for place in range(len(values)):
        near = min(reach, place, len(values) - 1 - place)
        out.append((sums[place + near + 1] - sums[place - near]) / (2 * near + 1))
    return out


def recent(values: Sequence[float]) -> float | None:
    """Where a noisy curve stands at its end: the mean over the last part of it."""
    last = values[-max(1, round(SPAN * len(values))) :]
    return sum(last) / len(last) if last else None


def thin(values: Sequence[float]) -> list[float]:
    """Every so-manieth value and the last one, at most about MOST_POINTS."""
    stride = math.ceil(len(values) / MOST_POINTS) or 1
    return [*values[:-1:stride], *values[-1:]]


def draw_loss(lines: Lines, kind: str = "svg") -> bytes:
    """Training and validation loss (nats per token) against trained tokens."""
    figure, axes = chart("loss (nats per token)")
    tokens, losses = points(lines, "train/loss")
    axes.plot(thin(tokens), thin(losses), color=FAINT, linewidth=0.8)
    axes.plot(thin(tokens), thin(smooth(losses)), color=INK, label="training")
    val_tokens, val = points(lines, "val/loss")
    if val:
        axes.plot(val_tokens, val, "o-", color=MARK, label="validation", markersize=4)
    limit(axes, [losses], val)
    axes.legend(frameon=False)
    return write(figure, kind)


def draw_speed(lines: Lines, kind: str = "svg") -> bytes:
    """Tokens per second, of all processes together."""
    figure, axes = chart("tokens per second")
    tokens, speeds = points(lines, "tokens_per_second")
    axes.plot(thin(tokens), thin(speeds), color=INK, linewidth=1)
    axes.set_ylim(0, 1.15 * max(speeds, default=1.0) or 1.0)
    axes.yaxis.set_major_formatter(lambda value, _: short(value))
    return write(figure, kind)


def draw_norm(lines: Lines, grad_clip: float, kind: str = "svg") -> bytes:
    """Gradient norm before clipping, and the line above which it is cut down."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = chart("gradient norm")
    tokens, norms = points(lines, "grad_norm")
    axes.plot(thin(tokens), thin(norms), color=FAINT, linewidth=0.8)
    axes.plot(thin(tokens), thin(smooth(norms)), color=INK)
    if any(norm > 0 for norm in norms):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: short(value))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if grad_clip and norms and max(norms) > grad_clip / 10:
        axes.axhline(grad_clip, color=MARK, linewidth=1, linestyle="--", label="clipped above")
        axes.legend(frameon=False)
    return write(figure, kind)


def draw_rate(lines: Lines, kind: str = "svg") -> bytes:
    """The learning rate as scheduled."""
    figure, axes = chart("learning rate")
    tokens, rates = points(lines, "learning_rate")
    axes.plot(thin(tokens), thin(rates), color=INK)
    axes.set_ylim(0, 1.1 * max(rates, default=1.0) or 1.0)
    axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    return write(figure, kind)


def draw_runs(runs: Sequence[tuple[str, Lines]]) -> bytes:
    """PNG of several runs' losses against tokens (left) and against training time (right); dots are validation."""
    from matplotlib import colormaps, rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MultipleLocator

    with rc_context(STYLE):
        figure = Figure(figsize=(13, 5.5), layout="constrained", dpi=120)
        left, right = figure.subplots(1, 2, sharey=True)
        colors = colormaps["tab10" if len(runs) <= 10 else "turbo"]
        for index, (name, lines) in enumerate(runs):
            color = colors(index if len(runs) <= 10 else index / (len(runs) - 1))
            for axes, x in ((left, "tokens"), (right, "elapsed")):
                draw_run(axes, with_time(lines), x, name, color)
        losses = [points(lines, "train/loss")[1] for _, lines in runs]
        limit(left, losses, [loss for _, lines in runs for loss in points(lines, "val/loss")[1]])
        dress(left, "loss (nats per token)", "tokens trained on")
        dress(right, "", "training time")
        right.xaxis.set_major_formatter(lambda value, _: clock(max(0.0, value)))
        right.xaxis.set_major_locator(MultipleLocator(interval(right.get_xlim()[1])))
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=min(4, max(1, len(runs))))
        return write(figure, "png")


def draw_run(axes: Axes, lines: Lines, x: str, name: str, color: Any) -> None:
    places, losses = points(lines, "train/loss", x)
    label = name.replace("$", r"\$")  # no formula
    axes.plot(
        thin(places), thin(smooth(losses)), color=color, label=label, marker="." if len(losses) == 1 else "", lw=1.3
    )
    axes.plot(*points(lines, "val/loss", x), "o", color=color, markersize=4)


def with_time(lines: Lines) -> Lines:
    """An evaluation's line does not say how long was trained: it takes the time of the step before it."""
    found, latest = [], None
    for line in lines:
        latest = line.get("elapsed", latest)
        found.append({**line, "elapsed": latest})
    return found


def interval(seconds: float) -> float:
    """Between ticks of a time axis this long: a round number of seconds, minutes, hours or days, about six ticks."""
    steps = [
        unit * n
        for unit, most in ((1, (1, 2, 5, 10, 30)), (60, (1, 2, 5, 10, 30)), (3600, (1, 2, 6, 12)))
        for n in most
    ]
    days = max(1, round(seconds / 6 / 86400))
    return next((float(step) for step in steps if seconds / step <= 7), 86400.0 * days)


def limit(axes: Axes, curves: Sequence[Sequence[float]], val: Sequence[float]) -> None:
    """From a little under the best loss to near where the curves begin: no spike and no start squeezes the rest."""
    curves = [curve for curve in curves if curve]
    if curves:
        high = max(smooth(curve)[len(curve) // 50] for curve in curves)
        axes.set_ylim(min([*map(min, curves), *val]) - 0.1, max([high, *val[-1:]]) + 0.1)


def chart(label: str) -> tuple[Figure, Axes]:
    """A small chart against tokens, legible on a phone and two beside each other on paper."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.3), layout="constrained", dpi=200)
        axes = figure.add_subplot()
        dress(axes, label, "tokens trained on")
    return figure, axes


def dress(axes: Axes, label: str, below: str) -> None:
    axes.set(xlabel=below, ylabel=label)
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def write(figure: Figure, kind: str) -> bytes:
    """The picture as the bytes of a file; drawn without a screen, the same bytes each time."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
    with rc_context(STYLE):
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()
