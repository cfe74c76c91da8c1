"""The picture that made GPT-3 famous (Brown et al. 2020, figure 3.1), of one's own ladder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpt2.train.metrics import is_number
from gpt2.train.plots import GRID, MARK, STYLE, points, smooth, thin, write
from gpt2.train.scaling import Law, Point
from gpt2.train.words import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

START = 0.02  # of a training curve left out: it falls from ln(vocabulary), and would squeeze all that follows


@dataclass(frozen=True)
class Curve:
    """One size: where it ended, what a token costs it, and its run's lines of metrics."""

    point: Point
    flops_per_token: float
    lines: Sequence[Mapping[str, Any]]


def draw_ladder(curves: Sequence[Curve], law: Law, predicted: float) -> bytes:
    """PNG: loss against compute on logarithmic axes, one curve a size, the line fitted to all ends but the last one's.

    Faint: training loss, smoothed. Dots: held-out loss, each of the same tokens. The star is the prediction.
    """
    from matplotlib import colormaps, rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(9, 6), layout="constrained", dpi=150)
        axes = figure.add_subplot()
        for number, curve in enumerate(curves):
            color = colormaps["viridis"](0.9 * number / max(1, len(curves) - 1))
            draw_curve(axes, curve, color, last=number == len(curves) - 1)
        draw_law(axes, [curve.point for curve in curves], law, predicted)
        axes.set(xscale="log", yscale="log", xlabel="compute (training FLOPs)", ylabel="loss (nats per token)")
        ticks(axes)
        axes.legend(frameon=False)
        return write(figure, "png")


def draw_curve(axes: Axes, curve: Curve, color: Any, last: bool) -> None:
    tokens, losses = points(curve.lines, "train/loss")
    first = round(START * len(tokens))
    flops = [count * curve.flops_per_token for count in tokens]
    axes.plot(thin(flops[first:]), thin(smooth(losses)[first:]), color=color, linewidth=0.8, alpha=0.5)
    seen = [line for line in curve.lines if is_number(line.get("val/loss")) and line["tokens"] < curve.point.tokens]
    tokens, losses = points(seen, "val/loss")
    point = curve.point
    label = f"{short(point.parameters)} parameters" + (" (held out)" if last else "")
    axes.plot(
        [*(count * curve.flops_per_token for count in tokens), point.flops],
        [*losses, point.loss],
        ".-",
        color=color,
        label=label,
    )
    axes.plot([point.flops], [point.loss], "o", color=color, markersize=8, markeredgecolor="white", zorder=4)


def draw_law(axes: Axes, ends: Sequence[Point], law: Law, predicted: float) -> None:
    reach = [ends[0].flops * (ends[-1].flops / ends[0].flops) ** (step / 100) for step in range(-5, 111)]
    formula, _, exponent = str(law).partition(" x^")
    axes.plot(
        reach, [law(x) for x in reach], "--", color=MARK, label=f"L = {formula} $C^{{{exponent}}}$", linewidth=1.2
    )
    label = f"predicted before its training: {predicted:.3f}"
    axes.plot([ends[-1].flops], [predicted], "*", color=MARK, markersize=16, label=label, zorder=3)


def ticks(axes: Axes) -> None:
    """Losses as plain numbers: a decade of them is never seen."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
