"""Published figures beside ours: the row of the nearest size, the difference, and what could explain it."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SAME_SIZE = 1.15  # parameters that differ by less than this factor
FEW = 2.0  # standard errors within which a difference may be chance


@dataclass(frozen=True)
class Row:
    """A published figure, in our units (shares between 0 and 1), and those of all sizes for a plot."""

    source: str
    family: str
    name: str
    parameters: float
    value: float
    sizes: tuple[tuple[float, float], ...]


@cache
def tables() -> list[dict[str, Any]]:
    text = Path(__file__).with_name("published.toml").read_text(encoding="utf-8")
    return list(tomllib.loads(text)["table"])


def nearest(result: Mapping[str, Any], metric: str, parameters: float) -> Row | None:
    """The published row that is nearest in size, of the result's protocol and kind of prompt."""
    found = [row for table in tables() if fits(table, result) if (row := row_of(table, result, metric, parameters))]
    return min(found, key=lambda row: distance(row.parameters, parameters), default=None)


def fits(table: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    few = "few" if result["shots"] else "zero"
    return table["protocol"] == result["protocol"] and table.get("shots", few) == few


def row_of(table: Mapping[str, Any], result: Mapping[str, Any], metric: str, parameters: float) -> Row | None:
    values = table["values"].get(f"{result['task']}.{metric}")
    if values is None:
        return None
    scale = 0.01 if result["metrics"][metric]["percent"] else 1.0
    sizes = tuple((float(size), value * scale) for size, value in zip(table["parameters"], values, strict=True))
    place = min(range(len(sizes)), key=lambda n: distance(sizes[n][0], parameters))
    size, value = sizes[place]
    return Row(table["source"], table["family"], table["names"][place], size, value, sizes)


def distance(one: float, other: float) -> float:
    return abs(math.log(one / other))


def explanations(result: Mapping[str, Any], metric: str, row: Row, model: Mapping[str, Any]) -> list[str]:
    """What could explain a difference, the likeliest first. All of it can be read off the result."""
    figure = result["metrics"][metric]
    found = []
    if figure["stderr"] and abs(figure["value"] - row.value) <= FEW * figure["stderr"]:
        found.append(f"within {FEW:g} standard errors: may be chance")
    parameters = model.get("parameters")
    if parameters and distance(parameters, row.parameters) > math.log(SAME_SIZE):
        found.append(f"another size: {words(parameters)} parameters against {words(row.parameters)}")
    found.append(f"another model unless the weights are OpenAI's: {row.family} read other text, and more or less of it")
    return found + of_the_setting(result, model)


def of_the_setting(result: Mapping[str, Any], model: Mapping[str, Any]) -> list[str]:
    how, found = result["how"], []
    if result["limit"]:
        found.append(f"only the first {result['limit']:,} items were asked")
    wanted, used = result["shots"], how.get("shots_used", 0)
    if used < wanted:
        found.append(f"only {used:g} of {wanted} examples fitted the context of {model['context_length']} tokens")
    if wanted and isinstance(result.get("examples"), str):
        found.append("examples were drawn from the other items: no training set was found")
    if how.get("items_cut"):
        found.append(f"{how['items_cut']:,} items were longer than the context and lost their beginning")
    if model.get("weights") not in (None, "float32"):
        found.append(f"weights were read as {model['weights']}")
    if how.get("stride") and how["stride"] < how["window"]:
        found.append(f"windows overlap (stride {how['stride']} of {how['window']}), which makes a text likelier")
    return found + ([result["note"]] if result["note"] else [])


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
