"""What all ways of asking share: settings, results, prompts with examples, and scores of what is too long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from gpt2.evaluate.data import Fields
from gpt2.evaluate.prompts import Example, Form, PromptBuilder
from gpt2.evaluate.score import Pair, Scored, Scores
from gpt2.evaluate.statistics import Column
from gpt2.evaluate.steps import Progress

Columns = dict[str, Column]
Rows = list[tuple[float, ...]]
CHUNK = 512  # items, or windows of a text, whose tokens are in memory at a time; a multiple of what is written at once
T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """What a run says about all tasks alike."""

    shots: int = 0
    seed: int = 0
    window: int = 0  # 0: the model's context
    stride: int = 0  # 0: the window, so that nothing is read twice
    progress: Progress | None = None


@dataclass
class Measured:
    """Columns by metric, the main one first, and facts about how they came about."""

    columns: Columns
    items: int
    facts: dict[str, Any] = field(default_factory=dict)


class Ask(Protocol):
    """A way of asking. `settings` says what it does, for the result."""

    def settings(self) -> dict[str, Any]: ...

    def measure(
        self, scores: Scores, items: Sequence[Fields], examples: Sequence[Fields], setting: Setting
    ) -> Measured: ...


@dataclass(frozen=True)
class Shots:
    """How examples stand before an item: what sets them apart, and a line of instruction before all."""

    separator: str = "\n\n"
    instruction: str = ""
    always: bool = False  # the instruction stands before examples too, not only in zero-shot
    k: int = 0  # the paper's number of examples in "few-shot"

    def form(self, k: int) -> Form:
        return Form(k, self.separator, self.instruction, self.always)


NO_SHOTS = Shots()


@dataclass(frozen=True)
class Chunk(Generic[T]):
    """Some of the items, the first of which is number `start`, and where to tell how far they are."""

    start: int
    items: Sequence[T]
    progress: Progress | None


def chunks(items: Sequence[T], progress: Progress | None) -> Iterator[Chunk[T]]:
    """All items, some at a time: memory does not grow with the task, and what one item's prompts share stays shared."""
    for start in range(0, len(items), CHUNK):
        part = items[start : start + CHUNK]
        yield Chunk(start, part, progress and within(progress, start, len(part), len(items)))


def within(progress: Progress, start: int, size: int, total: int) -> Progress:
    """Progress over a part of all items as progress over all, in thousandths of an item."""
    return lambda done, parts: progress(round(1000 * (start + size * done / max(1, parts))), 1000 * total)


def fill(template: str, values: Mapping[str, Any]) -> str:
    return template.format_map(values)


class Prompts:
    """Prompts with examples before them, and a count of what had to be left out or cut."""

    def __init__(self, scores: Scores, shots: Shots, setting: Setting, examples: Sequence[Example], room: int) -> None:
        self.context_length, self.tokenizer, self.room = scores.context_length, scores.tokenizer, room
        self.form, self.used, self.cut, self.asked = shots.form(setting.shots), 0, 0, 0
        pool = examples if setting.shots else []
        self.builder = PromptBuilder(self.form, pool, scores.tokenizer, scores.context_length, room, setting.seed)

    def texts(self, options: Sequence[Example], number: int) -> list[str]:
        """One for each option. What does not fit even alone stands alone, and loses its beginning when it is read."""
        self.asked += 1
        texts = [self.form.write([], option) for option in options]
        fits = max(map(self._tokens, texts, options)) + self.room <= self.context_length
        self.cut += not fits
        if not fits or not self.form.k:
            return texts
        prompts = self.builder.build_options(options, number)
        self.used += prompts[0].shots_used
        return [prompt.text for prompt in prompts]

    def _tokens(self, text: str, option: Example) -> int:
        return len(self.tokenizer.encode(text + option.answer))

    def facts(self) -> dict[str, Any]:
        """Examples that were used (a mean where they did not all fit), and items that lost their beginning."""
        found: dict[str, Any] = {"shots_used": round(self.used / max(1, self.asked), 2)}
        return found | ({"items_cut": self.cut} if self.cut else {})


def continuations(scores: Scores, pairs: Sequence[Pair], progress: Progress | None) -> list[Scored]:
    """`scores.continuations`, also of what is longer than the model's context: that is read in overlapping parts."""
    parts = [in_parts(pair, scores.context_length) for pair in pairs]
    found = iter(scores.continuations([part for each in parts for part in each], progress))
    return [together([next(found) for _ in each]) for each in parts]


def in_parts(pair: Pair, limit: int) -> list[Pair]:
    """The pair, or its continuation by halves of the context, each after all that stands before it."""
    context, after = pair
    if len(after) < limit:
        return [pair]
    size = max(1, limit // 2)
    return [([*context, *after[:start]], after[start : start + size]) for start in range(0, len(after), size)]


def together(parts: Sequence[Scored]) -> Scored:
    total = sum(part.log_likelihood for part in parts)
    return Scored(total, all(part.greedy for part in parts), sum(part.tokens for part in parts))
