"""The tasks of GPT-2's paper (Radford et al. 2019, section 3) over any text, and GPT-3's choice among labels: prompts.

A `Verb` is a task in the words that evaluate/tasks measures; an `Asker` makes prompts of it for one model, as the paper
has them, or in turns for a model that was tuned on dialogues. A text that is too long is cut or walked: see `Asker`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gpt2.config import load_toml
from gpt2.errors import UserError
from gpt2.evaluate.asked import DRAWN_BY_TWO, FROM_MEMORY, GREEDY, LINE, PAIR, STORY, TLDR, TURN, Writing
from gpt2.evaluate.metrics import sentences
from gpt2.evaluate.pieces import pieces
from gpt2.evaluate.prompts import Example, Form, Prompt, PromptBuilder, Template

if TYPE_CHECKING:
    from gpt2.tokenizer.bpe import Tokenizer
    from gpt2.tokenizer.chat_template import ChatTemplate

Long = Literal["cut", "walk", "error"]
INPUTS, OUTPUTS = ("input", "prompt"), ("output", "completion")  # names that fit any verb's examples
SEAM = 8  # tokens that a text may grow by where it is joined with others


@dataclass(frozen=True)
class Verb:
    """One task. `template` is an item up to its answer, `before` what stands once, before all examples.

    `asked` is the template for models that were tuned on dialogues: the same as a person would say it. `names` are
    those that a field may have in a file of examples, `answers` those of the answer, beside INPUTS and OUTPUTS. `long`
    is the field that may be cut or walked; of an answer the first `sentences` are kept (0: all).
    """

    template: str
    writing: Writing
    asked: str
    long: str
    separator: str = "\n\n"
    before: str = ""
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    answers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()  # all answers that there are, where they are few
    sentences: int = 0

    def clean(self, text: str) -> str:
        """What of a written text is the answer."""
        return " ".join(sentences(text)[: self.sentences]) if self.sentences else text.strip()

    def worded(self, pattern: str) -> Verb:
        """Asked in other words; {input} or {prompt} there is the field that the verb's own template ends with."""
        main = Template(self.template).fields[-1]
        for name in INPUTS:
            pattern = pattern.replace(f"{{{name}}}", f"{{{main}}}")
        known, used = {main, *self.names}, Template(pattern).fields
        for name in used:
            if name not in known:
                raise UserError(f"--template {pattern!r}: no field '{name}' here; there are input, {', '.join(known)}")
        if main not in used:
            raise UserError(f"--template {pattern!r}: has no {{input}}, where the text goes")
        return replace(self, template=pattern, before="" if "context" in used else self.before)

    def in_turns(self) -> Verb:
        """For a model that was tuned on dialogues: it has learned where its answers end."""
        return replace(self, template=self.asked, separator="", sentences=0, writing=replace(self.writing, stop=()))

    def ends(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """Where an answer stops: as published, or where the next example would begin."""
        return self.writing.stop or ((self.separator,) if examples and self.separator else ())


SUMMARIZE = Verb(
    TLDR,
    DRAWN_BY_TWO,
    "Summarize this text in three sentences:\n\n{article}",
    "article",
    names={"article": ("article", "text", "document")},
    answers=("summary", "highlights"),
    sentences=3,
)
ANSWER = Verb(
    TURN,
    GREEDY,
    "{question}",
    "context",
    before="{context}",
    names={"question": ("question",), "context": ("context", "passage", "document")},
    answers=("answer",),
)
CLOSED_BOOK = Verb(FROM_MEMORY, GREEDY, "{question}", "", "\n", names={"question": ("question",)}, answers=("answer",))

WRITE = Verb("{prompt}", STORY, "{prompt}", "", names={"prompt": ("prompt",)})


def translate(source: str, target: str) -> Verb:
    """From one language to another, by codes or names; the paper's prompt holds neither, its examples show them."""
    asked = f"Translate this from {language(source)} to {language(target)}:\n\n{{source}}"
    names = {"source": (source, "source")}
    return Verb(PAIR, LINE, asked, "source", "\n", names=names, answers=(target, "target"), sentences=1)


def classify(labels: Sequence[str]) -> Verb:
    """One of these labels, in the form of GPT-3's CB (Brown et al. 2020, appendix G)."""
    *first, last = (label.replace("{", "{{").replace("}", "}}") for label in labels)
    choice = f"{', '.join(first)}{',' if len(first) > 1 else ''} or {last}"
    names = {"text": ("text", "sentence")}
    template = f"{{text}}\nquestion: {choice}?\nanswer:"
    asked = f"{{text}}\n\nIs this {choice}?"
    return Verb(template, Writing(), asked, "text", names=names, answers=("label",), options=tuple(labels))


LANGUAGES = {"en": "English", "fr": "French", "de": "German", "es": "Spanish", "it": "Italian", "ro": "Romanian"}


def language(code: str) -> str:
    """Its English name, or the word itself."""
    return LANGUAGES.get(code.lower(), code)


def own_sentences(source: str, target: str) -> list[Example]:
    """The sentences of sentences.toml as examples; none where they are not in both languages."""
    document = load_toml(Path(__file__).with_name("sentences.toml"))
    sides, template = (source.lower(), target.lower()), Template(PAIR)
    return [
        template.example({"source": one[sides[0]], "output": one[sides[1]]})
        for one in document["sentence"]
        if all(side in one for side in sides)
    ]


def read_shots(path: str | Path, verb: Verb) -> tuple[Verb, list[Example]]:
    """Solved examples of a file in any form of data/formats.py, and the verb as they ask for it; UserError, with line.

    Answers about passages of their own come with a `context` each: the passage is then part of every item.
    """
    from gpt2.data.formats import read_rows, recognise

    columns = {*INPUTS, *OUTPUTS, *verb.answers, *(name for names in verb.names.values() for name in names)}
    rows = read_rows(Path(path), recognise(Path(path), columns))
    found = [(row.fields, f"{path} line {row.line}") for row in rows]
    if verb.before:
        known = verb.names[verb.long]
        own = [any(name in item for name in known) for item, _ in found]
        if any(own) and not all(own):
            raise UserError(f"{found[own.index(False)][1]}: no '{known[0]}', which other examples have; all or none")
        if all(own):
            whole = [f"{verb.before}\n\n{text}" for text in (verb.template, verb.asked)]
            verb = replace(verb, template=whole[0], asked=whole[1], before="")
    template = Template(verb.template)
    return verb, [template.example(as_item(item, verb, template, where), where) for item, where in found]


def as_item(item: Mapping[str, Any], verb: Verb, template: Template, where: str) -> dict[str, Any]:
    """The example's fields by the verb's names, its answer as `output`."""
    found = {"output": taken(item, (*verb.answers, *OUTPUTS), where)}
    if verb.options:
        found["output"] = str(found["output"])  # labels may be numbers
    if verb.options and found["output"] not in verb.options:
        raise UserError(f"{where}: '{found['output']}' is none of {', '.join(verb.options)}")
    for name in template.fields:
        found[name] = taken(item, (*verb.names[name], *(INPUTS if len(template.fields) == 1 else ())), where)
    return found


def taken(item: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    """The one field of these names."""
    there = [name for name in dict.fromkeys(names) if name in item]
    if len(there) != 1:
        fault = f"both '{there[0]}' and '{there[1]}'" if there else f"none of {', '.join(dict.fromkeys(names))}"
        raise UserError(f"{where}: has {fault}; an example needs one of them. It has {', '.join(item) or 'nothing'}")
    return item[there[0]]


@dataclass(frozen=True)
class Turns(Form):
    """A prompt as a dialogue: examples are turns that were answered, what stands before all is said in the first."""

    chat: ChatTemplate = field(kw_only=True)

    def write(self, shots: Sequence[Example], item: Example) -> str:
        return self.chat.render(self._messages(shots, item), add_generation_prompt=True)

    def encode(self, shots: Sequence[Example], item: Example) -> list[int]:
        """The same in tokens: what a text says is never taken for the template's special ones."""
        ids: list[int] = []
        messages = self._messages(shots, item)
        for number, message in enumerate(messages):
            said = message["role"] == "assistant"
            ids += (
                self.chat.tokenizer.encode(message["content"]) if said else self.chat.turn(messages[:number], message)
            )
        return ids

    def _messages(self, shots: Sequence[Example], item: Example) -> list[dict[str, str]]:
        said = [part.strip() for shot in shots for part in (shot.context, shot.answer)] + [item.context]
        said[0] = f"{self.instruction}\n\n{said[0]}" if self.instruction else said[0]
        return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]


@dataclass(frozen=True)
class Asker:
    """Prompts of one verb for one model: examples, then the item, with `room` tokens left for the answer.

    Where a text is too long for the context, `long` decides: "cut" takes its beginning, "walk" its pieces one after
    another, "error" refuses. It then gets the room that the rest of the prompt leaves, or half of that where there are
    examples, which take the other half. Pieces end where a reader would pause.
    """

    verb: Verb
    tokenizer: Tokenizer
    context_length: int
    room: int
    examples: Sequence[Example] = ()
    k: int | None = None
    seed: int = 0
    long: Long = "cut"
    chat: ChatTemplate | None = None  # the verb is then one `in_turns`

    def fits(self, item: Mapping[str, str]) -> bool:
        """Whether the model can read all of it in one prompt."""
        return self._tokens(item) + self.room <= self.context_length

    def prompts(self, item: Mapping[str, str]) -> list[Prompt]:
        """The item's prompt, or one for each piece of its text. UserError where that cannot be had."""
        if not self.verb.long or self.fits(item):
            return [self._build(item)]
        if self.long == "error":
            raise UserError(
                f"the text: {self._tokens(item):,} tokens with its prompt and {self.room:,} for the answer "
                f"pass the model's context of {self.context_length:,}; use --long cut or walk"
            )
        found = pieces(item[self.verb.long], self.tokenizer, self._room_for_text(item))
        if self.long == "cut":
            return [self._build({**item, self.verb.long: next(found)})]
        return [self._build({**item, self.verb.long: piece}) for piece in found]

    def _room_for_text(self, item: Mapping[str, str]) -> int:
        bare = self._tokens({**item, self.verb.long: ""})
        left = self.context_length - self.room - bare - SEAM
        left //= 2 if self.examples and self.k != 0 else 1
        if left < 1:
            raise UserError(
                f"the model's context of {self.context_length:,} tokens has no room for a text beside the "
                f"rest of its prompt, {bare:,}, and an answer of {self.room:,} (--max-new-tokens)"
            )
        return left

    def _tokens(self, item: Mapping[str, str]) -> int:
        """Of the item without examples."""
        form = self._form(item)
        return len(self.tokenizer.encode(form.write([], self._example(item))))

    def _build(self, item: Mapping[str, str]) -> Prompt:
        form = self._form(item)
        builder = PromptBuilder(form, self.examples, self.tokenizer, self.context_length, self.room, self.seed)
        example = self._example(item)
        prompt = builder.build(example)
        return replace(prompt, ids=form.encode(prompt.shots, example)) if isinstance(form, Turns) else prompt

    def _form(self, item: Mapping[str, str]) -> Form:
        shape = (self.k, self.verb.separator, self.verb.before.format_map(item), True)
        return Turns(*shape, chat=self.chat) if self.chat else Form(*shape)

    def _example(self, item: Mapping[str, str]) -> Example:
        return Example(self._template.context(item))

    @cached_property
    def _template(self) -> Template:
        return Template(self.verb.template)
