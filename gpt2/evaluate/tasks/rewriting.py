"""Texts in another language (WMT), and in fewer words (CNN/Daily Mail)."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gpt2.errors import UserError
from gpt2.evaluate.asked import DRAWN_BY_TWO, LINE, PAIR, PAIRS_SHOWN, TLDR, Writing
from gpt2.evaluate.data import Fields, Form, Hub
from gpt2.evaluate.measures import Shots, Write
from gpt2.evaluate.metrics import first_sentences
from gpt2.evaluate.rows import Row, open_text, parallel
from gpt2.evaluate.tasks.comparing import (
    by_bleu,
    by_rouge,
)
from gpt2.evaluate.tasks.task import Task

FIRST = 10_000  # rows: WMT'14 has 40.8M pairs of English and French


def segments(paths: Sequence[Path]) -> Iterator[Row]:
    """WMT's SGML: <seg id="1">text</seg>, the source in one file and the reference in another."""
    sides = []
    for path in paths[:2]:
        found = re.findall(r"<seg[^>]*>(.*?)</seg>", open_text(path), re.DOTALL)
        if not found:
            raise UserError(f"{path}: no <seg> in it; expected WMT's SGML")
        sides.append([html.unescape(text).strip() for text in found])
    if len(sides[0]) != len(sides[1]):
        raise UserError(f"{paths[0]} has {len(sides[0]):,} segments, {paths[1]} {len(sides[1]):,}")
    for number, (source, target) in enumerate(zip(*sides, strict=True), 1):
        yield Row({"source": source, "target": target}, f"{paths[0]} segment {number}")


def translation(year: int, source: str, target: str) -> Task:
    """WMT 2014 (French) or 2016. SacreBLEU is in its international tokens where GPT-3 is followed, whose paper gives
    the signature tok.intl beside multi-bleu, and in its usual ones (13a) where GPT-2 is, whose paper names none."""
    names = {"en": "English", "fr": "French", "de": "German", "ro": "Romanian"}

    def pair(row: Row) -> Fields:
        return {"source": row.text("source"), "answers": [row.text("target")], "language": names[target]}

    def hub(row: Row) -> Fields:
        both = row.row("translation")
        return {"source": both.text(source), "answers": [both.text(target)], "language": names[target]}

    other = source if source != "en" else target
    set_name = f"newstest20{year}"
    sgml = (f"{set_name}-{source}{target}-src.{source}.sgm", f"{set_name}-{source}{target}-ref.{target}.sgm")
    archive = {14: "test-full", 16: "test"}[year]
    forms = (
        Form(sgml, pair, segments, split="test", archive=archive),
        Form(
            (f"{set_name}-{other}en-src.{source}.sgm", f"{set_name}-{other}en-ref.{target}.sgm"),
            pair,
            segments,
            split="test",
            archive=archive,
        ),
        Form((f"{set_name}.{source}", f"{set_name}.{target}"), pair, parallel, split="test"),
    )
    zero = "Q: What is the {language} translation of {source}\nA:"
    beams = Writing(200, ("\n",), beams=4)
    gpt3 = Write(PAIR, by_bleu("intl"), writing=beams, shots=Shots("\n", k=64), zero_shot=zero)
    asks: dict[str, Any] = {"gpt3": gpt3}
    if year == 14:
        asks["gpt2"] = Write(
            PAIR,
            by_bleu("13a"),
            writing=LINE,
            shots=Shots("\n", k=PAIRS_SHOWN),
            clean=lambda text: first_sentences(text, 1),
        )
    config = f"{other}-en"
    note = "BLEU is SacreBLEU's, of one reference."
    notes = {"gpt2": f"How many example pairs GPT-2 was shown is not stated: {PAIRS_SHOWN} were chosen."}
    title = f"WMT'{year} {names[source][:2]}→{names[target][:2]}"
    fetched = Hub(f"wmt/wmt{year}", hub, config, "test", first=FIRST)
    return Task(f"wmt{year}_{source}_{target}", title, forms, asks, fetched, note, notes=notes)


def stories(paths: Sequence[Path]) -> Iterator[Row]:
    """CNN/Daily Mail as it was published: an article, then its highlights, each after a line @highlight."""
    for path in paths:
        article, *highlights = open_text(path).split("\n@highlight\n")
        if not highlights:
            raise UserError(f"{path}: no line '@highlight' in it")
        yield Row({"article": article.strip(), "highlights": "\n".join(map(str.strip, highlights))}, str(path))


def summary(row: Row) -> Fields:
    return {"article": " ".join(row.text("article").split()), "answers": [row.text("highlights")]}


def summary_pair(row: Row) -> Fields:
    return {"article": row.text("source"), "answers": [row.text("target")]}


TASKS = (
    translation(14, "en", "fr"),
    translation(14, "fr", "en"),
    translation(16, "en", "de"),
    translation(16, "de", "en"),
    translation(16, "en", "ro"),
    translation(16, "ro", "en"),
    Task(
        "cnn_dm",
        "CNN/Daily Mail",
        (
            Form(("cnn_dm/test.source", "cnn_dm/test.target"), summary_pair, parallel, split="test"),
            Form(("cnn_dm/*.story",), summary, stories, split="test", many=True),
        ),
        {"gpt2": Write(TLDR, by_rouge, writing=DRAWN_BY_TWO, trim="article")},
        Hub("abisee/cnn_dailymail", summary, "3.0.0", "test", first=FIRST),
        "Of an article that is too long the end is cut; the paper does not say which part was read.",
    ),
)
