"""How a model is asked: to choose, to say a word, to write, to read on. Each way gives columns of figures.

Templates are Python's: `Question: {question}\nAnswer:` takes the item's field; `{option}` is each of its options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gpt2.errors import UserError
from gpt2.evaluate.data import Fields
from gpt2.evaluate.metrics import f1 as word_overlap
from gpt2.evaluate.prompts import Example, Form, PromptBuilder
from gpt2.evaluate.score import Pair, Scored, Scores, encode_pair, end_of_text, windows
from gpt2.evaluate.statistics import Column
from gpt2.evaluate.writing import Writing, likeliest, write

Columns = dict[str, Column]
Rows = list[tuple[float, ...]]
GREEDY_LINE = Writing()
SEAM = 8  # tokens that a cut text may grow by when it is encoded anew
Progress = Callable[[int, int], None]


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


@dataclass(frozen=True)
class Choose:
    """The likeliest option by one or more ways of comparing (`by`: metric -> way; the first is the main one).

    Ways: `sum` of log-probabilities, per `token`, per `character` (of the option, without the space before it), or
    `free`: divided by the probability of the same answer after the context `free` alone. Fields: `options`, `gold`
    (a place, or several).
    """

    context: str
    answer: str = " {option}"
    by: Mapping[str, str] = field(default_factory=lambda: {"acc": "token"})
    free: str = "Answer:"
    shots: Shots = Shots()
    also: tuple[str, ...] = ()  # "macro_f1", "group", "answer_f1": see the functions of these names

    def settings(self) -> dict[str, Any]:
        found = {"context": self.context, "answer": self.answer, "compared_by": dict(self.by)}
        return found | ({"free_context": self.free} if "free" in self.by.values() else {})

    def measure(
        self, scores: Scores, items: Sequence[Fields], examples: Sequence[Fields], setting: Setting
    ) -> Measured:
        shown = [self.options(item)[first(item["gold"])] for item in examples] if setting.shots else []
        prompts = Prompts(scores, self.shots, setting, shown, 0)
        options = [self.options(item) for item in items]
        texts = [prompts.texts(parts, number) for number, parts in enumerate(options)]
        pairs = [
            encode_pair(scores.tokenizer, text, option.answer)
            for row, parts in zip(texts, options, strict=True)
            for text, option in zip(row, parts, strict=True)
        ]
        alone = [encode_pair(scores.tokenizer, self.free, o.answer) for parts in options for o in parts]
        alone = alone if "free" in self.by.values() else []
        found = continuations(scores, [*pairs, *alone], setting.progress)
        rows = list(cut_up(found[: len(pairs)], options))
        free = list(cut_up(found[len(pairs) :], options)) if alone else [()] * len(items)
        guesses = {
            way: [guess(way, *each) for each in zip(rows, free, options, strict=True)] for way in set(self.by.values())
        }
        columns = {name: right(items, guesses[way]) for name, way in self.by.items()}
        return Measured(
            columns | self._others(items, guesses[next(iter(self.by.values()))]), len(items), prompts.facts()
        )

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
    values = [each.log_likelihood for each in found]
    if way == "token":
        values = [each.log_likelihood / each.tokens for each in found]
    elif way == "character":
        values = [value / len(option.answer.strip(" ")) for value, option in zip(values, options, strict=True)]
    elif way == "free":
        values = [value - alone.log_likelihood for value, alone in zip(values, free, strict=True)]
    elif way != "sum":
        raise ValueError(f"no way to compare: {way}")
    return values.index(max(values))


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


@dataclass(frozen=True)
class LastWord:
    """The one word (or, with `token`, only the last token of it) that ends a text: perplexity and greedy accuracy.

    Fields: `before`, `word`. With `stop_words` there is also the accuracy when these are never guessed, with which
    GPT-2's paper approximates that the word is the last of its sentence: `acc` then, and the plain one `acc_any`.
    """

    context: str = "{before}"
    answer: str = " {word}"
    token: bool = False
    stop_words: frozenset[str] = frozenset()
    shots: Shots = Shots()
    main: str = "ppl"

    def settings(self) -> dict[str, Any]:
        found: dict[str, Any] = {"context": self.context, "answer": self.answer}
        found["predicted"] = "the last token" if self.token else "all tokens of the last word"
        return found | ({"stop_words": len(self.stop_words)} if self.stop_words else {})

    def measure(
        self, scores: Scores, items: Sequence[Fields], examples: Sequence[Fields], setting: Setting
    ) -> Measured:
        shown = [self.example(item) for item in examples] if setting.shots else []
        prompts = Prompts(scores, self.shots, setting, shown, 0)
        pairs = []
        for number, item in enumerate(items):
            (text,) = prompts.texts([self.example(item)], number)
            pairs.append(encode_pair(scores.tokenizer, text, self.example(item).answer))
        words = continuations(scores, pairs, setting.progress)
        asked = [last_token(pair) for pair in pairs] if self.token else pairs
        found = continuations(scores, asked, setting.progress) if self.token else words
        columns = {
            "ppl": Column("perplexity", [(-each.log_likelihood, 1.0) for each in found]),
            "acc": Column("mean", [(float(each.greedy), 1.0) for each in found]),
        }
        if self.stop_words:
            columns["acc_any"] = columns["acc"]
            columns["acc"] = self._filtered(scores, asked, setting)
        if self.token:
            columns["ppl_word"] = Column("perplexity", [(-each.log_likelihood, 1.0) for each in words])
            columns["acc_word"] = Column("mean", [(float(each.greedy), 1.0) for each in words])
        return Measured({self.main: columns[self.main], **columns}, len(items), prompts.facts())

    def example(self, item: Fields) -> Example:
        return Example(fill(self.context, item), fill(self.answer, item), item.get("id"))

    def _filtered(self, scores: Scores, asked: Sequence[Pair], setting: Setting) -> Column:
        """Right if the first token of the answer is the likeliest that is no stop word, and greedy from there on."""
        tops = likeliest(scores, [context for context, _ in asked])
        firsts = [next((id for id in top if not self._stops(scores, id)), -1) for top in tops]
        rest = [([*context, after[0]], after[1:]) for context, after in asked if len(after) > 1]
        others = iter(continuations(scores, rest, setting.progress) if rest else [])
        rows: Rows = []
        for (_, after), token in zip(asked, firsts, strict=True):
            follows = next(others).greedy if len(after) > 1 else True
            rows.append((float(token == after[0] and follows), 1.0))
        return Column("mean", rows)

    def _stops(self, scores: Scores, token: int) -> bool:
        return scores.tokenizer.decode([token]).strip().lower() in self.stop_words


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


def last_token(pair: Pair) -> Pair:
    context, after = pair
    return [*context, *after[:-1]], after[-1:]


@dataclass(frozen=True)
class Write:
    """A text that the model writes, against references (field `answers`).

    `score` gives each metric's kind and sums for one item.
    """

    context: str
    score: Callable[[str, Fields], dict[str, tuple[str, tuple[float, ...]]]]
    answer: str = " {shown}"
    writing: Writing = GREEDY_LINE
    shots: Shots = Shots()
    clean: Callable[[str], str] = str.strip
    zero_shot: str = ""  # the context where there are no examples, if it is another
    trim: str = ""  # a field that is cut at its end where the prompt is too long, instead of the prompt's beginning

    def settings(self) -> dict[str, Any]:
        return {"context": self.context, "answer": self.answer} | self.writing.settings()

    def measure(
        self, scores: Scores, items: Sequence[Fields], examples: Sequence[Fields], setting: Setting
    ) -> Measured:
        shown = [self.example(item, setting) for item in examples] if setting.shots else []
        prompts = Prompts(scores, self.shots, setting, shown, self.writing.max_new_tokens)
        asked = [
            scores.tokenizer.encode(prompts.texts([self.asked(scores, item, setting)], number)[0])
            for number, item in enumerate(items)
        ]
        texts = write(scores, asked, self.writing, setting.seed, setting.progress)
        columns: Columns = {}
        for text, item in zip(texts, items, strict=True):
            for name, (kind, sums) in self.score(self.clean(text), item).items():
                columns.setdefault(name, Column(kind)).rows.append(sums)
        return Measured(columns, len(items), prompts.facts())

    def asked(self, scores: Scores, item: Fields, setting: Setting) -> Example:
        """The item without its answer."""
        example = self.example(item, setting)
        over = len(scores.tokenizer.encode(example.context)) + self.writing.max_new_tokens - scores.context_length
        if self.trim and over > 0:
            ids = scores.tokenizer.encode(item[self.trim])
            item = {**item, self.trim: scores.tokenizer.decode(ids[: max(0, len(ids) - over - SEAM)])}
            example = self.example(item, setting)
        return Example(example.context, "", example.id)

    def example(self, item: Fields, setting: Setting) -> Example:
        context = self.zero_shot if self.zero_shot and not setting.shots else self.context
        values = {**item, "shown": item["answers"][0]}
        return Example(fill(context, values), fill(self.answer, values), item.get("id"))


@dataclass(frozen=True)
class ReadOn:
    """A whole text, each token once: perplexity per canonical unit, or bits.

    `canonical` cuts records into documents, each a text as the model reads it and its number of units *in the file as
    it was published*. `units` are words, bytes or characters; the first of `metrics` is the main one.
    """

    canonical: Callable[[Sequence[Fields]], list[Document]]
    metrics: Mapping[str, tuple[str, str]]  # metric -> (kind, unit)
    note: str = ""  # what counts as a unit, in words

    def settings(self) -> dict[str, Any]:
        return {"denominators": self.note}

    def measure(
        self, scores: Scores, items: Sequence[Fields], examples: Sequence[Fields], setting: Setting
    ) -> Measured:
        if setting.shots:
            raise UserError("a text that is read on takes no examples; leave --shots at 0 for it")
        window = setting.window or scores.context_length
        stride = setting.stride or window
        if not 0 < stride <= window <= scores.context_length:
            raise UserError(
                f"--window {window} --stride {stride}: must be 1 <= stride <= window <= {scores.context_length}"
            )
        documents = self.canonical(items)
        cut = [list(cut_text(scores, document.text, window, stride)) for document in documents]
        found = iter(scores.continuations([pair for pairs in cut for pair in pairs], setting.progress))
        columns = {name: Column(kind) for name, (kind, _) in self.metrics.items()}
        tokens = 0
        for document, pairs in zip(documents, cut, strict=True):
            each = [next(found) for _ in pairs]
            total = sum(part.tokens for part in each)
            tokens += total
            for name, (_, unit) in self.metrics.items():
                share = document.units[unit] / total
                columns[name].rows += [(-part.log_likelihood, part.tokens * share) for part in each]
        units = {unit: sum(document.units[unit] for document in documents) for _, unit in self.metrics.values()}
        facts = {"window": window, "stride": stride, "first_token_after": "end-of-text", "tokens": tokens}
        return Measured(columns, len(documents), facts | {"units": units, "bootstrap_over": "windows"})


@dataclass(frozen=True)
class Document:
    text: str
    units: Mapping[str, int]


def cut_text(scores: Scores, text: str, window: int, stride: int) -> Iterator[Pair]:
    """The windows of `Scores.rolling` as pairs, so that each one's part of the whole is known."""
    whole = [*end_of_text(scores.tokenizer), *scores.tokenizer.encode(text)]
    for reading in windows(whole, window, stride):
        silent = len(reading.tokens) - len(reading.targets) + 1
        yield reading.tokens[:silent], reading.targets


def mean(value: float) -> tuple[str, tuple[float, ...]]:
    """What a metric that is a mean over items gives for one of them."""
    return "mean", (value, 1.0)
