"""Published figures beside ours: the row of the nearest size, the difference, and what could explain it."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NEAR = math.log(1.15)  # parameters that differ by less than this factor are the same size
FEW = 2.0  # standard errors within which a difference may be chance


@dataclass(frozen=True)
class Row:
    """A published figure, in our units (shares between 0 and 1), and those of all sizes for a plot.

    `note`: how it was measured otherwise than ours, which `source` says too.
    """

    source: str
    family: str
    name: str
    parameters: float
    value: float
    sizes: tuple[tuple[float, float], ...]
    split: str = ""  # the set it is of, where that is not the one that is usually asked
    note: str = ""


@cache
def tables() -> list[dict[str, Any]]:
    text = Path(__file__).with_name("published.toml").read_text(encoding="utf-8")
    return list(tomllib.loads(text)["table"])


def nearest(result: Mapping[str, Any], metric: str, parameters: float) -> Row | None:
    """The published row that is nearest in size, of the result's protocol and kind of prompt."""
    found = [row for table in tables() if fits(table, result) if (row := row_of(table, result, metric, parameters))]
    return min(found, key=lambda row: distance(row.parameters, parameters), default=None)


def fits(table: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    """Few-shot rows stand beside any number of examples but one; those of no kind, beside the paper's own number; those
    of a number, beside this one alone."""
    shots, papers = result["shots"], result.get("paper_shots", result["shots"])
    kind = "zero" if shots == 0 else "one" if shots == 1 != papers else "few"
    wanted = table.get("shots", papers)
    return table["protocol"] == result["protocol"] and wanted == (shots if isinstance(wanted, int) else kind)


def row_of(table: Mapping[str, Any], result: Mapping[str, Any], metric: str, parameters: float) -> Row | None:
    values = table["values"].get(f"{result['task']}.{metric}")
    if values is None:
        return None
    scale = 0.01 if result["metrics"][metric]["percent"] else 1.0
    sizes = tuple((float(size), value * scale) for size, value in zip(table["parameters"], values, strict=True))
    place = min(range(len(sizes)), key=lambda n: distance(sizes[n][0], parameters))
    size, value = sizes[place]
    split, note = table.get("split", ""), table.get("note", "")
    source = f"{table['source']}, {note}" if note else table["source"]
    return Row(source, table["family"], table["names"][place], size, value, sizes, split, note)


def distance(one: float, other: float) -> float:
    return abs(math.log(one / other))


def of_all(results: Sequence[Mapping[str, Any]], model: Mapping[str, Any], rows: Iterable[Row]) -> list[str]:
    """What could explain differences of all figures alike, the likeliest first."""
    found = ["unless the weights are OpenAI's, the model has read other text than theirs, and more or less of it"]
    parameters = model.get("parameters")
    others = sorted({row.parameters for row in rows if parameters and distance(parameters, row.parameters) > NEAR})
    if not parameters:
        found.append("the model's size is not known: it stands beside published models of about 124M parameters")
    if parameters and others:
        sizes = ", ".join(map(words, others))
        found.append(f"another size: {words(parameters)} parameters, beside published models of {sizes}")
    if limit := results[0]["limit"]:
        found.append(f"only the first {limit:,} items of each task were asked (of a text, lines or articles)")
    if model.get("weights") not in (None, "float32"):
        found.append(f"weights were read as {model['weights']}, not float32")
    return found


def of_one(result: Mapping[str, Any], metric: str, row: Row, model: Mapping[str, Any]) -> list[str]:
    """What could explain this figure's difference beyond that. All of it can be read off the result."""
    figure, how, found = result["metrics"][metric], result["how"], []
    if figure["stderr"] and abs(figure["value"] - row.value) <= FEW * figure["stderr"]:
        found.append(f"the difference is within {FEW:g} standard errors and may be chance")
    if row.note:
        found.append(f"the published figure was measured {row.note}")
    if other := another_set(result, row):
        found.append(other)
    wanted = result["shots"]
    if how.get("shots_used", 0) < wanted:
        found.append(too_few(result, model))
    if "draw" in result:
        found.append(f"examples were drawn {result['draw']}")
    papers = result.get("paper_shots", wanted)
    if wanted and wanted != papers and result["protocol"] != "harness":  # which is no paper's
        found.append(f"{wanted} examples were asked for, where the paper had {papers}")
    if wanted and isinstance(result.get("examples"), str):
        found.append("examples were drawn from the other items, as no training set was found")
    if how.get("items_cut"):
        found.append(f"{how['items_cut']:,} items were longer than the context and lost their beginning")
    if how.get("stride") and how["stride"] < how["window"]:
        found.append(f"windows overlap (stride {how['stride']} of {how['window']}), which makes a text likelier")
    found += [re.sub("^The ", "the ", result["note"].rstrip("."))] if result["note"] else []
    return [found[0][0].upper() + found[0][1:], *found[1:]] if found else []


def too_few(result: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """Why fewer examples were shown than were asked for: there are no more, or the context has no room for them."""
    wanted, used, pool = result["shots"], result["how"].get("shots_used", 0), result.get("pool", result["shots"])
    room = f"fitted the context of {model['context_length']} tokens"
    if pool >= wanted:
        return f"only {used:g} of {wanted} examples {room}"
    there = f"there are only {pool:,} examples to draw from, where {wanted} were asked for"
    return there if used >= pool else f"{there}, and {used:g} of them {room}"


def another_set(result: Mapping[str, Any], row: Row) -> str:
    """Where what was asked is not the set that the published figure is of, or a part of it."""
    usual = row.split or result.get("usual_split", result["split"])
    return "" if result["split"] == usual else f"what was asked is {result['split']}, the published figure's is {usual}"


def words(parameters: float) -> str:
    for unit, letter in ((1e9, "B"), (1e6, "M")):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{letter}"
    return f"{parameters / 1e3:.3g}k"


def all_of(results: Sequence[Mapping[str, Any]], parameters: float) -> dict[tuple[int, str], Row]:
    """(place of the result, metric) -> published row, of those that have one."""
    found = {}
    for place, result in enumerate(results):
        for metric in result["metrics"]:
            if row := nearest(result, metric, parameters):
                found[place, metric] = row
    return found
