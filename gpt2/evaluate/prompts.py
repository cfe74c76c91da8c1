"""In-context learning: prompts of solved examples and one item to solve, after Brown et al. 2020, section 2.4.

There, K examples are drawn at random from a task's training set for each item, as many as the context has room for or
fewer, set apart by one or two newlines, with an instruction in natural language in addition to them or, for K = 0,
instead of them. Here none is ever cut, none is the item itself, and what follows the prompt keeps its room.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from gpt2.errors import UserError, did_you_mean

ANSWERS = ("output", "completion")  # fields that may hold the answer, where nobody names another
SEAMS = 32  # tokens by which a prompt may be shorter than its parts, as tokens merge where these meet


class Encoder(Protocol):
    """All that is asked of a tokenizer."""

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class Example:
    """One item as it is written: `answer` follows `context` directly, with the space that stands between them.

    An answer that is not known (what the model is to write) is empty. Two items are the same if their contexts are,
    or their ids where both have one.
    """

    context: str
    answer: str = ""
    id: Any = None

    @property
    def text(self) -> str:
        return self.context + self.answer

    def same(self, other: Example) -> bool:
        return self.context == other.context or (self.id is not None and self.id == other.id)


@dataclass(frozen=True)
class Template:
    """How a task's items are written: `English: {input}\\nFrench:`, with the answer's field behind it.

    `{field}` stands for a field of the item, `{{` and `}}` for braces. Spaces at the end go to the answer, for in
    GPT-2's vocabulary a space is the beginning of a word; with no white space at the end one is added there.
    `answer` names the field of the answer; None takes the one of ANSWERS that an item has.
    """

    pattern: str
    answer: str | None = None

    def __post_init__(self) -> None:
        if not self.fields:
            raise UserError(f"the task {self.pattern!r} names no field; write it as 'English: {{input}}\\nFrench:'")

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields in the pattern, each once; UserError for braces that are no field."""
        names: dict[str, None] = {}
        try:
            for _, name, form, conversion in string.Formatter().parse(self.pattern):
                if name is None:
                    continue
                if not name.isidentifier() or form or conversion:
                    raise ValueError(f"{{{name}}} is no field's name")
                names[name] = None
        except ValueError as error:
            raise UserError(f"the task {self.pattern!r}: {error}; for a brace itself write {{{{ or }}}}") from None
        return tuple(names)

    def context(self, item: Mapping[str, Any], where: str = "the item") -> str:
        """The item without its answer, and without spaces at its end; UserError for a field that is missing."""
        values = {name: value_of(item, name, where) for name in self.fields}
        return self._stem.format_map(values)

    def example(self, item: Mapping[str, Any], where: str = "the item") -> Example:
        """The item with its answer."""
        return Example(self.context(item, where), self.joint + self._answer(item, where), item.get("id"))

    @property
    def joint(self) -> str:
        """What stands between context and answer."""
        return self.pattern[len(self._stem) :] or ("" if self._stem[-1:].isspace() else " ")

    @property
    def _stem(self) -> str:
        return self.pattern.rstrip(" ")

    def _answer(self, item: Mapping[str, Any], where: str) -> str:
        if self.answer is not None:
            return value_of(item, self.answer, where)
        there = [name for name in ANSWERS if name in item and name not in self.fields]
        if len(there) != 1:
            fault = f"both '{there[0]}' and '{there[1]}'" if there else f"no answer in a field '{ANSWERS[0]}'"
            raise UserError(f"{where}: has {fault}; say which field is the answer")
        return value_of(item, there[0], where)


def value_of(item: Mapping[str, Any], name: str, where: str) -> str:
    """A field as text; UserError if it is missing or neither text nor a number."""
    if name not in item:
        raise UserError(f"{where}: no field '{name}'{did_you_mean(name, item)}; it has {', '.join(item) or 'none'}")
    value = item[name]
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UserError(f"{where}: field '{name}' is {json.dumps(value)[:40]}; expected text or a number")
    return str(value)


def read_examples(path: str | Path, template: Template) -> list[Example]:
    """A file of JSON objects, one a line, as examples; UserError that names file, line and field."""
    found: list[Example] = []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), 1):
        if line.strip():
            where = f"{path} line {number}"
            found.append(template.example(read_object(line, where), where))
    return found


def read_object(line: bytes | str, where: str) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON: {error}") from None
    if not isinstance(item, dict):
        raise UserError(f"{where}: {json.dumps(item)[:40]}; expected an object of fields")
    return item


@dataclass(frozen=True)
class Form:
    """How a task puts a prompt together, the same for all its items.

    `k` examples, or as many as fit where it is None: 0 is the paper's zero-shot, 1 one-shot. `separator` is the
    paper's one or two newlines. The instruction comes first: in zero-shot always, before examples only if
    `instruct_shots` says so.
    """

    k: int | None = None
    separator: str = "\n\n"
    instruction: str = ""
    instruct_shots: bool = False

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 0:
            raise UserError(f"k = {self.k}: so many examples; must be at least 0")

    def write(self, shots: Sequence[Example], item: Example) -> str:
        """Instruction, examples and the item's context, set apart."""
        instructed = self.instruction and (self.instruct_shots or not shots)
        parts = [self.instruction] if instructed else []
        return self.separator.join([*parts, *(shot.text for shot in shots), item.context])


@dataclass(frozen=True)
class Prompt:
    """What the model reads: text and its token ids; the examples in it, in their order."""

    text: str
    ids: list[int] = field(repr=False)
    shots: tuple[Example, ...] = ()

    @property
    def shots_used(self) -> int:
        return len(self.shots)


@dataclass(frozen=True)
class PromptBuilder:
    """Prompts of one task: `build` for an item that is to be answered, `build_options` for one with a choice.

    `room` tokens of the context are left free behind the prompt and the item's own answer. The same seed, item number
    and examples give the same prompt.
    """

    form: Form
    examples: Sequence[Example]
    tokenizer: Encoder
    context_length: int
    room: int = 0
    seed: int = 0

    def build(self, item: Example, number: int = 0) -> Prompt:
        """The prompt of one item; `number` is its place in its set, so that each draws examples of its own.

        UserError if the item does not fit the context even without examples: it is not cut either.
        """
        return self.build_options([item], number)[0]

    def build_options(self, options: Sequence[Example], number: int = 0) -> list[Prompt]:
        """One prompt for each option of one item, all with the same examples: as many as fit beside the longest.

        Options differ in their answers, or in their contexts where it is what follows that is scored (Winograd).
        """
        drawn = self._draw(options, number)
        shots = tuple(drawn[: self._most_that_fit(drawn, options)])
        texts = [self.form.write(shots, option) for option in options]
        return [Prompt(text, self.tokenizer.encode(text), shots) for text in texts]

    def _draw(self, options: Sequence[Example], number: int) -> list[Example]:
        """Examples in random order: k, or one more than fit. Those too long for any prompt are passed over.

        A walk over a whole pool in search of one that fits encodes none of them twice: what is too long even by its
        own length is not tried in a prompt.
        """
        wanted = len(self.examples) if self.form.k is None else self.form.k
        drawn: list[Example] = []
        length, most = 0, self._most_beside(options) if wanted else 0
        if len(self._lengths) == len(self.examples) and self._shortest > most:
            return []
        for index in shuffled(len(self.examples), random.Random(f"{self.seed} {number}")):
            if len(drawn) >= wanted or (length > self.context_length and not self._fits(drawn, options)):
                break
            example = self.examples[index]
            if self._length(index) > most or any(example.same(option) for option in options):
                continue
            if self._fits([example], options):
                drawn.append(example)
                length += self._length(index)
        return drawn

    def _most_beside(self, options: Sequence[Example]) -> int:
        """Tokens of an example that may fit beside the longest of these: what has more does certainly not."""
        longest = max(len(self.tokenizer.encode(option.text)) for option in options)
        return self.context_length - self.room - longest + SEAMS

    def _length(self, index: int) -> int:
        """Tokens of one example, which is encoded once."""
        if index not in self._lengths:
            self._lengths[index] = len(self.tokenizer.encode(self.examples[index].text))
        return self._lengths[index]

    @cached_property
    def _lengths(self) -> dict[int, int]:
        return {}

    @cached_property
    def _shortest(self) -> int:
        """Of all examples; asked only when every length is known."""
        return min(self._lengths.values(), default=0)

    def _most_that_fit(self, drawn: Sequence[Example], options: Sequence[Example]) -> int:
        """By halves: tokens at the joints may merge, so only a whole prompt can be counted."""
        low, high = 0, len(drawn)
        while low < high:
            middle = (low + high + 1) // 2
            if self._fits(drawn[:middle], options):
                low = middle
            else:
                high = middle - 1
        if low == 0 and not self._fits([], options):
            longest = max(self._tokens([], option) for option in options)
            raise UserError(
                f"an item of {longest:,} tokens with its answer and room for {self.room:,} more do not fit the "
                f"context of {self.context_length:,} tokens, even without examples; shorten it, or leave less room"
            )
        return low

    def _fits(self, shots: Sequence[Example], options: Sequence[Example]) -> bool:
        return all(self._tokens(shots, option) + self.room <= self.context_length for option in options)

    def _tokens(self, shots: Sequence[Example], option: Example) -> int:
        return len(self.tokenizer.encode(self.form.write(shots, option) + option.answer))


def shuffled(count: int, dice: random.Random) -> Iterator[int]:
    """The numbers below `count` in random order, drawn one by one (Fisher and Yates), each Python's alike."""
    moved: dict[int, int] = {}
    for left in range(count, 0, -1):
        place = int(dice.random() * left)
        yield moved.get(place, place)
        moved[place] = moved.pop(left - 1, left - 1)
