"""Tasks with options: the likeliest one, by several ways of comparing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt2.evaluate.data import Fields
from gpt2.evaluate.measures.base import (
    NO_SHOTS,
    Chunk,
    Columns,
    Measured,
    Prompts,
    Rows,
    Setting,
    Shots,
    chunks,
    continuations,
    fill,
)
from gpt2.evaluate.metrics import f1 as word_overlap
from gpt2.evaluate.prompts import Example
from gpt2.evaluate.score import Pair, Scored, Scores, encode_pair
from gpt2.evaluate.statistics import Column


@dataclass(frozen=True)
class Choose:
    """The likeliest option by one or more ways of comparing (`by`: metric -> way; the first is the main one).

    Ways: `sum` of log-probabilities, per `token`, per `character` (of the option as published, without the one space
    that the template sets before it), or `free`: divided by the probability of the same answer after the context
    `free` alone. Fields: `options`, `gold` (a place, or several).
    """

    context: str
    answer: str = " {option}"
    by: Mapping[str, str] = field(default_factory=lambda: {"acc": "token"})
    free: str = "Answer:"
    shots: Shots = NO_SHOTS
    also: tuple[str, ...] = ()  # "macro_f1", "group", "answer_f1": see the functions of these names

    def settings(self) -> dict[str, Any]:
        found = {"context": self.context, "answer": self.answer, "compared_by": dict(self.by)}
        return found | ({"free_context": self.free} if "free" in self.by.values() else {})

    def measure(
        self, scores: Scores, items: Sequence[Fields], examples: Sequence[Fields], setting: Setting
    ) -> Measured:
        shown = [self.options(item)[first(item["gold"])] for item in examples] if setting.shots else []
        prompts = Prompts(scores, self.shots, setting, shown, 0)
        guesses: dict[str, list[int]] = {way: [] for way in self.by.values()}
        for chunk in chunks(items, setting.progress):
            options = [self.options(item) for item in chunk.items]
            rows, free = self._scored(scores, prompts, options, chunk)
            for way, places_of_best in guesses.items():
                places_of_best += [guess(way, *each) for each in zip(rows, free, options, strict=True)]
        columns = {name: right(items, guesses[way]) for name, way in self.by.items()}
        return Measured(
            columns | self._others(items, guesses[next(iter(self.by.values()))]), len(items), prompts.facts()
        )

    def _scored(
        self, scores: Scores, prompts: Prompts, options: Sequence[Sequence[Example]], chunk: Chunk[Fields]
    ) -> tuple[list[Sequence[Scored]], list[Sequence[Scored]]]:
        """Each item's options after its prompt, and, where a way asks for it, after the context `free` alone."""
        pairs = [
            encode_pair(scores.tokenizer, text, option.answer)
            for number, parts in enumerate(options, chunk.start)
            for text, option in zip(prompts.texts(parts, number), parts, strict=True)
        ]
        alone: list[Pair] = []
        if "free" in self.by.values():
            alone = [encode_pair(scores.tokenizer, self.free, option.answer) for parts in options for option in parts]
        found = continuations(scores, [*pairs, *alone], chunk.progress)
        free: list[Sequence[Scored]] = [()] * len(options)
        if alone:
            free = list(cut_up(found[len(pairs) :], options))
        return list(cut_up(found[: len(pairs)], options)), free

    def options(self, item: Fields) -> list[Example]:
        """Context and answer of each option."""
        found = []
        for option in item["options"]:
            values = {**item, "option": option}
            found.append(Example(fill(self.context, values), fill(self.answer, values), item.get("id")))
        return found

    def _others(self, items: Sequence[Fields], guesses: Sequence[int]) -> Columns:
        found: Columns = {}
        if "macro_f1" in self.also:
            found["f1"] = confusion(items, guesses)
        if "group" in self.also:
            found |= grouped(items, guesses)
        if "answer_f1" in self.also:
            found["f1"] = answer_f1(items, guesses)
        return found


def guess(way: str, found: Sequence[Scored], free: Sequence[Scored], options: Sequence[Example]) -> int:
    """The place of the option that is best in this way; the first of equals, as numpy has it."""
    values = compared(way, found, free, options)
    return values.index(max(values))


def compared(way: str, found: Sequence[Scored], free: Sequence[Scored], options: Sequence[Example]) -> list[float]:
    """What is compared in this way, one value for each option (nats)."""
    values = [each.log_likelihood for each in found]
    if way == "token":
        values = [each.log_likelihood / each.tokens for each in found]
    elif way == "character":
        values = [value / len(option.answer.removeprefix(" ")) for value, option in zip(values, options, strict=True)]
    elif way == "free":
        values = [value - alone.log_likelihood for value, alone in zip(values, free, strict=True)]
    elif way != "sum":
        raise ValueError(f"no way to compare: {way}")
    return values


def cut_up(found: Sequence[Scored], options: Sequence[Sequence[Example]]) -> Iterator[Sequence[Scored]]:
    start = 0
    for parts in options:
        yield found[start : start + len(parts)]
        start += len(parts)


def places(gold: int | Sequence[int]) -> Sequence[int]:
    return [gold] if isinstance(gold, int) else gold


def first(gold: int | Sequence[int]) -> int:
    return places(gold)[0]


def right(items: Sequence[Fields], guesses: Sequence[int]) -> Column:
    return Column("mean", [(float(g in places(item["gold"])), 1.0) for item, g in zip(items, guesses, strict=True)])


def confusion(items: Sequence[Fields], guesses: Sequence[int]) -> Column:
    """Gold by guessed, a table for each item with a single 1."""
    size = len(items[0]["options"])
    rows = []
    for item, guessed in zip(items, guesses, strict=True):
        cells = [0.0] * (size * size)
        cells[first(item["gold"]) * size + guessed] = 1.0
        rows.append(tuple(cells))
    return Column("macro_f1", rows)


def answer_f1(items: Sequence[Fields], guesses: Sequence[int]) -> Column:
    """ReCoRD's F1: of the words of the option that was guessed with those of the nearest right one."""
    rows: Rows = []
    for item, guessed in zip(items, guesses, strict=True):
        gold = [item["options"][place] for place in places(item["gold"])]
        rows.append((word_overlap(item["options"][guessed], gold), 1.0))
    return Column("mean", rows)


def grouped(items: Sequence[Fields], guesses: Sequence[int]) -> Columns:
    """MultiRC's figures: all answers of a question right; F1 of all answers together. Option 1 is "true"."""
    groups: dict[Any, list[tuple[bool, bool]]] = {}
    for item, guessed in zip(items, guesses, strict=True):
        groups.setdefault(item["group"], []).append((guessed == 1, first(item["gold"]) == 1))
    every: Rows = [(float(all(a == b for a, b in group)), 1.0) for group in groups.values()]
    counts: Rows = [
        (float(sum(a and b for a, b in g)), float(sum(a for a, _ in g)), float(sum(b for _, b in g)))
        for g in groups.values()
    ]
    return {"all_right": Column("mean", every), "f1a": Column("f1", counts)}
