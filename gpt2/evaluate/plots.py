"""Pictures of evaluations, as SVG: figures against size, beside the published curve, and against K."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpt2.evaluate import published
from gpt2.evaluate.statistics import DRAWS as DRAWS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, MARK, GRID = "#2f6f9f", "#9fc3dc", "#d9722b", "#e4e4e8"
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "gpt2", "font.family": "sans-serif", "font.size": 9}
ACROSS = 3

Found = Mapping[str, Any]


def draw_sizes(found: Found, beside: Sequence[Found] = ()) -> bytes | None:
    """A small picture for each main figure that was published for several sizes; None where none was."""
    parameters = found["model"].get("parameters") or 124.4e6
    shown = []
    for result in found["results"]:
        metric = next(iter(result["metrics"]))
        row = published.nearest(result, metric, parameters)
        if row and len(row.sizes) > 2:
            shown.append((result, metric, row))
    if not shown:
        return None
    figure, cells = grid(len(shown))
    for axes, (result, metric, row) in zip(cells, shown, strict=True):
        scale = 100 if result["metrics"][metric]["percent"] else 1
        axes.plot([size for size, _ in row.sizes], [v * scale for _, v in row.sizes], "o-", color=FAINT, markersize=4)
        for other in beside:
            for same in (each for each in other["results"] if key(each) == key(result)):
                point(axes, other["model"].get("parameters"), same["metrics"][metric], INK)
        point(axes, found["model"].get("parameters"), result["metrics"][metric], MARK)
        axes.set_xscale("log")
        axes.set_yscale("linear" if scale == 100 else "log")
        dress(axes, result, metric)
        axes.xaxis.set_major_formatter(lambda value, _: published.words(value))
        plain_numbers(axes)
    return svg(figure)


def draw_shots(everything: Sequence[Found]) -> bytes | None:
    """Each task that was asked with several numbers of examples, a line for each model; None where none was."""
    curves: dict[tuple[str, str], list[list[Mapping[str, Any]]]] = {}
    for found in everything:
        for name in dict.fromkeys((each["task"], each["protocol"]) for each in found["results"]):
            same = [each for each in found["results"] if (each["task"], each["protocol"]) == name]
            if len({each["shots"] for each in same}) > 1:
                curves.setdefault(name, []).append(sorted(same, key=lambda each: each["shots"]))
    if not curves:
        return None
    figure, cells = grid(len(curves))
    for axes, models in zip(cells, curves.values(), strict=True):
        metric = next(iter(models[0][0]["metrics"]))
        for place, results in enumerate(models):
            figures = [each["metrics"][metric] for each in results]
            scale = 100 if figures[0]["percent"] else 1
            axes.errorbar(
                [each["shots"] for each in results],
                [each["value"] * scale for each in figures],
                [(each["stderr"] or 0) * scale for each in figures],
                fmt="o-",
                markersize=4,
                color=INK if place else MARK,
            )
        dress(axes, models[0][0], metric)
    return svg(figure)


def key(result: Mapping[str, Any]) -> tuple[Any, ...]:
    return result["task"], result["protocol"], result["shots"]


def point(axes: Axes, size: float | None, figure: Mapping[str, Any], color: str) -> None:
    scale = 100 if figure["percent"] else 1
    if size:
        axes.errorbar(
            [size], [figure["value"] * scale], [(figure["stderr"] or 0) * scale], fmt="D", color=color, markersize=5
        )


def grid(count: int) -> tuple[Figure, Iterable[Axes]]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    down = -(-count // ACROSS)
    with rc_context(STYLE):
        figure = Figure(figsize=(10.5, 2.5 * down), layout="constrained")
        cells = figure.subplots(down, ACROSS, squeeze=False).ravel().tolist()
    for empty in cells[count:]:
        empty.set_axis_off()
    return figure, cells[:count]


def dress(axes: Axes, result: Mapping[str, Any], metric: str) -> None:
    percent = " (%)" if result["metrics"][metric]["percent"] else ""
    shots = f", {result['shots']}-shot" if result["shots"] else ""
    shots += ", harness" if result["protocol"] == "harness" else ""
    axes.set_title(f"{result['title']}{shots}: {metric}{percent}", fontsize=9)
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def plain_numbers(axes: Axes) -> None:
    """Few labels on a logarithmic axis, and those as numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.xaxis.set_minor_formatter(NullFormatter())
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def svg(figure: Figure) -> bytes:
    """The picture's bytes, the same each time."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
