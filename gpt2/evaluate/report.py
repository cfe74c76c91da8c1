"""results.json as pages: report.md and report.html (which needs nothing beside it), ours beside what was published."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2 import atomic
from gpt2.evaluate import plots, published

LABELS = {
    "ppl": "perplexity",
    "ppl_word": "perplexity per word",
    "acc": "accuracy",
    "acc_any": "accuracy without stop-word filter",
    "acc_word": "accuracy, whole word",
    "acc_norm": "accuracy per character",
    "acc_token": "accuracy per token",
    "em": "exact match",
    "f1": "F1",
    "bleu": "BLEU",
    "bits_per_byte": "bits per byte",
    "bits_per_character": "bits per character",
    "word_perplexity": "perplexity per word",
    "byte_perplexity": "perplexity per byte",
    "all_right": "all answers right",
    "f1a": "F1 of answers",
    "rouge_average": "ROUGE, mean",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
}


@dataclass(frozen=True)
class Line:
    """A metric of a result as it is shown. `first`: the result's main one, with which the task is named."""

    task: str
    protocol: str
    shots: int
    metric: str
    ours: str
    theirs: str
    source: str
    difference: str
    first: bool
    reasons: str  # what could explain the main metric's difference


def write_report(out: Path, found: Mapping[str, Any], beside: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Both pages; `beside` are results of other models, for the plots. The path of the HTML one."""
    atomic.write_text(out / "report.md", markdown(found))
    atomic.write_text(out / "report.html", page(found, beside))
    return out / "report.html"


def lines(found: Mapping[str, Any]) -> list[Line]:
    rows = published.all_of(found["results"], found["model"].get("parameters") or 124.4e6)
    made = []
    for place, result in enumerate(found["results"]):
        beside = next((metric for metric in result["metrics"] if (place, metric) in rows), "")
        for number, metric in enumerate(result["metrics"]):
            row = rows.get((place, metric))
            reasons = published.of_one(result, metric, row, found["model"]) if row and metric == beside else []
            made.append(line_of(result, metric, row, number == 0, reasons))
    return made


def line_of(
    result: Mapping[str, Any], metric: str, row: published.Row | None, first: bool, reasons: Sequence[str]
) -> Line:
    figure = result["metrics"][metric]
    scale = 100 if figure["percent"] else 1
    value = figure["value"] * scale
    return Line(
        asked(result),
        result["protocol_title"],
        result["shots"],
        LABELS.get(metric, metric) + (" (%)" if figure["percent"] else ""),
        number(value) + ("" if figure["stderr"] is None else f" ± {number(figure['stderr'] * scale)}"),
        number(row.value * scale) if row else "",
        f"{row.name}, {row.source}" if row else "",
        number(value - row.value * scale, "+") if row else "",
        first,
        "; ".join(reasons),
    )


def asked(result: Mapping[str, Any]) -> str:
    """The task, and the set where it is not the one that is usually asked."""
    split = result["split"]
    return result["title"] if split == result.get("usual_split", split) else f"{result['title']} ({split})"


def number(value: float, sign: str = "") -> str:
    """Two digits behind the point, fewer where nobody reads them."""
    size = abs(value)
    return format(value, f"{sign},.2f" if size < 1000 else f"{sign},.0f" if size < 1e7 else f"{sign}.1e")


def general(found: Mapping[str, Any]) -> list[str]:
    """What could explain all differences alike; nothing where none is shown."""
    rows = published.all_of(found["results"], found["model"].get("parameters") or 124.4e6)
    return published.of_all(found["results"], found["model"], rows.values()) if rows else []


def facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the figures were measured on and with."""
    model = found["model"]
    size = f", {published.words(model['parameters'])} parameters" if model.get("parameters") else ""
    made = [("Model", f"{model['name']}{size}, context of {model['context_length']} tokens")]
    if model.get("weights"):
        made.append(("Read with", f"{model['weights']} weights on {model['device']}"))
    made.append(("Model's sha256", model.get("sha256") or "unknown: it is behind a server"))
    made += [("Seed", str(found["seed"])), ("gpt2", found["gpt2"])]
    return [*made, ("Versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items()))]


def details(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How each result came about: data, protocol's settings, denominators; versions, where they are not the others'."""
    return [
        (f"{each['title']}, {each['protocol_title']}, {each['shots']}-shot", settings(each) + older(found, each))
        for each in found["results"]
    ]


def older(found: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """What a result was made with, if it is of an earlier run with other versions."""
    now, then = found["versions"], result.get("versions", found["versions"])
    changed = [f"{name} {then.get(name, 'none')}" for name in {**now, **then} if now.get(name) != then.get(name)]
    return f"; measured with {', '.join(changed)}" if changed else ""


def left_out(found: Mapping[str, Any]) -> list[str]:
    """Why tasks are not there: no data, no such way of asking, nothing that a server can do."""
    return [*found["without_data"].values(), *found.get("left_out", {}).values()]


def settings(result: Mapping[str, Any]) -> str:
    files = ", ".join(result["data"]["files"][:3]) + (", ..." if len(result["data"]["files"]) > 3 else "")
    limit = f", the first {result['limit']:,}" if result["limit"] else ""
    parts = [f"{files} ({result['split']}{limit}), sha256 {result['data']['sha256'][:12]}; {result['items']:,} items"]
    parts += [f"{key.replace('_', ' ')}: {plain(value)}" for key, value in result["how"].items()]
    if examples := result.get("examples"):
        whence = examples if isinstance(examples, str) else f"{', '.join(examples['files'])} ({examples['split']})"
        parts.append(f"examples drawn from {whence}")
    if "draw" in result:
        parts.append(f"examples drawn {result['draw']}")
    return "; ".join(parts)


def plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(part)}" for key, part in value.items())
    if isinstance(value, list):
        return " ".join(map(plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        f"{value:,}"
        if isinstance(value, int)
        else repr(value)
        if isinstance(value, str) and "{" in value
        else str(value)
    )


def markdown(found: Mapping[str, Any]) -> str:
    head = ["task", "protocol", "K", "metric", "ours", "published", "difference"]
    table = [head, ["---", "---", "--:", "---", "--:", "--:", "--:"]]
    for line in lines(found):
        theirs = f"{line.theirs} ({line.source})" if line.theirs else ""
        task = line.task if line.first else ""
        table.append([task, line.protocol, str(line.shots), line.metric, line.ours, theirs, line.difference])
    body = "\n".join("| " + " | ".join(row) + " |" for row in table)
    facts_text = "\n".join(f"- {key}: {value}" for key, value in facts(found))
    reasons = [f"- all: {reason}" for reason in general(found)]
    reasons += [f"- {each.task}, {each.metric}: {each.reasons}" for each in lines(found) if each.reasons]
    how = "\n".join(f"- {title}: {text}" for title, text in details(found))
    parts = ["# Evaluation", facts_text, body, f"± is one standard error, by bootstrap ({plots.DRAWS:,} samples)."]
    parts += ["## What could explain the differences", "\n".join(reasons)] if reasons else []
    parts += ["## How it was measured", how]
    if missing := left_out(found):
        parts += ["## Left out", "\n".join(f"- {reason}" for reason in missing)]
    return "\n\n".join(parts) + "\n"


def page(found: Mapping[str, Any], beside: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page as HTML; every text from outside is escaped."""
    import jinja2

    source = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    pictures = [
        (title, base64.b64encode(picture).decode("ascii"))
        for title, picture in (
            ("Against size: the published sizes in blue, this model in orange", plots.draw_sizes(found, beside)),
            ("Against the number of examples (K)", plots.draw_shots([found, *beside])),
        )
        if picture
    ]
    return template.render(
        name=found["model"]["name"],
        facts=facts(found),
        lines=lines(found),
        general=general(found),
        pictures=pictures,
        details=details(found),
        missing=left_out(found),
        draws=plots.DRAWS,
    )
