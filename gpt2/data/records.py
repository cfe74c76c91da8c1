"""From a row's fields to what is encoded: pieces of text, each learned or not, in the order of reading.

Each piece is encoded alone, so a prompt has the tokens that it has when a user writes it. One space joins a prompt
and its completion where neither has white space there; GPT-2 knows a word best with its space in front.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from gpt2.data.formats import END_OF_TEXT, Row
from gpt2.data.shapes import Shape, as_text, find_shape, has_shape
from gpt2.errors import UserError
from gpt2.tokenizer.chat_template import ChatTemplate, Piece, parse_message

if TYPE_CHECKING:
    from gpt2.tokenizer.bpe import Tokenizer

ANSWERS = ("completion", "output", "chosen", "rejected")  # roles that are no part of a prompt
MAY_LACK = ("input", "text")  # roles that may be null
EQUAL = "pairs of equal texts, left out"


@dataclass(frozen=True)
class Record:
    """One example before it is encoded: its sides (a preference has two), and what it shares with its like: `key`."""

    line: int
    key: str
    sides: tuple[list[Piece], ...]
    label: str = ""


class RecordReader:
    """Rows of one shape as records. `left_out` counts, by reason, what of them is not learned.

    Raises UserError for a template that does not go with the shape.
    """

    def __init__(
        self, path: object, shape: Shape, tokenizer: Tokenizer, template: str | None, columns: Mapping[str, str]
    ) -> None:
        self.path, self.shape, self.tokenizer, self.template = path, shape, tokenizer, template
        self.columns = columns
        self._names: dict[str, Any] = {role: role for role in shape.absent} | {**shape.roles, **shape.optional}
        self._fields: set[str] = set()  # of the first row
        eot = tokenizer.eot_id
        self.start: list[Piece] = [("\n" if eot is None else eot, False)]  # as a text begins that has no prompt
        self.end: list[Piece] = [] if eot is None else [(eot, True)]
        self.left_out: Counter[str] = Counter()
        self.chats = False  # whether the chat template wrote any record
        self._read = getattr(self, f"_{shape.form}")
        if template is not None:
            self._check_template(template)

    @cached_property
    def chat(self) -> ChatTemplate:
        return ChatTemplate.of(self.tokenizer)

    def read(self, row: Row) -> Record | None:
        """A row's record; None for one that is left out. UserError, with file and line, for what cannot be learned."""
        where = f"{self.path} line {row.line}"
        self._fields = self._fields or {*row.fields, *self.shape.absent}
        if more := row.fields.keys() - self._fields:
            self._check_more(row, more, where)
        record: Record | None = self._read(row, where)
        return record

    def _check_more(self, row: Row, more: set[str], where: str) -> None:
        """Fields that the first row lacks: UserError if they make another kind of example, else they are counted."""
        if not self.columns and has_shape(row.fields) and find_shape(row.fields, {}, where).form != self.shape.form:
            raise UserError(
                f"{where}: has {', '.join(sorted(more))}, the first example has not; give files of one kind each, or "
                "say what to read with --columns"
            )
        for name in sorted(more):
            self.left_out[f"examples with a field {name!r}, not read as the first one has none"] += 1

    def _text(self, row: Row, where: str) -> Record | None:
        text = self._unmarked(self._field(row, "text", where), "texts")
        if not text.strip():
            self.left_out["texts without any text, left out"] += 1
            return None
        return Record(row.line, text, ([*self.start, (text, True), *self.end],))

    def _label(self, row: Row, where: str) -> Record:
        text, label = (self._filled(row, role, where).strip() for role in ("text", "label"))  # as `classify` reads it
        end = self.end or [(self.tokenizer.encode(text)[-1], False)]
        return Record(row.line, text, ([(text, True), *end],), label)

    def _completion(self, row: Row, where: str) -> Record:
        prompt, completion = self._prompt(row, where), self._filled(row, "completion", where)
        return Record(row.line, prompt or completion, (self._answered(prompt, completion),))

    def _preference(self, row: Row, where: str) -> Record | None:
        if isinstance(row.fields.get(self.shape.roles["chosen"]), list):
            return self._compared(row, where)
        prompt = self._prompt(row, where)
        chosen, rejected = self._filled(row, "chosen", where), self._filled(row, "rejected", where)
        if chosen.strip() == rejected.strip():
            self.left_out[EQUAL] += 1
            return None
        return Record(row.line, prompt, (self._answered(prompt, chosen), self._answered(prompt, rejected)))

    def _compared(self, row: Row, where: str) -> Record | None:
        """Conversations that differ in their last answer; the prompt, where it is messages, begins both."""
        if self.template is not None:
            raise UserError(f"{where}: --template does not go with messages, which the chat template writes")
        asked = row.fields.get(self.shape.roles["prompt"])
        begun = asked if isinstance(asked, list) else []
        told = [self._told([*begun, *self._list(row, role, where)], where) for role in ("chosen", "rejected")]
        (before, chosen), (other, rejected) = (_last_answer(self._rendered(messages, where)) for messages in told)
        if before != other:
            raise UserError(f"{where}: expected chosen and rejected to differ in their last answer alone")
        if chosen == rejected:
            self.left_out[EQUAL] += 1
            return None
        return Record(row.line, _key(before), ([*before, *chosen], [*before, *rejected]))

    def _instruction(self, row: Row, where: str) -> Record:
        output = self._filled(row, "output", where)
        if self.template is not None:
            prompt = self._prompt(row, where)
            return Record(row.line, prompt, (self._answered(prompt, output),))
        asked = [self._filled(row, "instruction", where), self._field(row, "input", where)]
        content = "\n\n".join(text for text in asked if text.strip())
        pieces = self._rendered([{"role": "user", "content": content}, {"role": "assistant", "content": output}], where)
        return Record(row.line, _key(pieces), (pieces,))

    def _messages(self, row: Row, where: str) -> Record:
        messages = self._told(self._list(row, "messages", where), where)
        self.left_out["conversations cut behind their last answer"] += messages[-1]["role"] != "assistant"
        pieces = self._rendered(messages, where)
        return Record(row.line, _key(pieces), (pieces,))

    def _list(self, row: Row, role: str, where: str) -> list[Any]:
        value = row.fields.get(self.shape.roles[role])
        if not isinstance(value, list):
            raise UserError(f"{where}: expected a list of messages ({role}), found {type(value).__name__}")
        return value

    def _told(self, found: list[Any], where: str) -> list[dict[str, str]]:
        """Messages out of JSON, an answer among them, and none empty."""
        messages = [parse_message(message, where) for message in found]
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        if not answers:
            raise UserError(f"{where}: expected a message of the assistant, which is what is learned; found none")
        if not all(answer.strip() for answer in answers):
            raise UserError(f"{where}: expected text in each message of the assistant, found an empty one")
        return messages

    def _rendered(self, messages: list[dict[str, str]], where: str) -> list[Piece]:
        """By the chat template; a conversation that it begins with an answer begins as a text does."""
        self.chats = True
        try:
            pieces = self.chat.pieces(messages)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if not any(learned for _, learned in pieces):
            raise UserError(f"{where}: the chat template writes nothing of what the assistant says")
        return pieces if not pieces[0][1] else [*self.start, *pieces]

    def _prompt(self, row: Row, where: str) -> str:
        """The text in front of a completion: the prompt, or the template with the row's fields in it."""
        if self.template is None:
            return self._field(row, "prompt", where)
        fields = {name: self._field(row, name, where) for name in _named(self.template)}
        return self.template.rstrip(" ").format_map(fields)  # its last space is the completion's: " word" is one token

    def _answered(self, prompt: str, completion: str) -> list[Piece]:
        completion = self._unmarked(completion, "completions")
        joins = bool(prompt) and not prompt[-1:].isspace() and not completion[:1].isspace()
        start: list[Piece] = [(prompt, False)] if prompt else self.start
        return [*start, (" " * joins + completion, True), *self.end]

    def _unmarked(self, text: str, what: str) -> str:
        """Without a spelled end of text at its end, which comes anyway; one elsewhere is letters, and is counted."""
        if text.rstrip().endswith(END_OF_TEXT):
            self.left_out[f"{what} with {END_OF_TEXT} at their end, which is taken for the token"] += 1
            text = text.rstrip().removesuffix(END_OF_TEXT)
        if END_OF_TEXT in text:
            self.left_out[f"{what} with {END_OF_TEXT} inside, learned as the letters that it is"] += 1
        return text

    def _field(self, row: Row, role: str, where: str) -> str:
        """A field's text; a role that rows may lack, or that this file lacks, gives an empty one."""
        name = self._names.get(role)
        value = row.fields.get(name or "")
        if isinstance(value, str):
            return value
        return "" if name is None or (value is None and role in MAY_LACK) else as_text(value, name, where)

    def _filled(self, row: Row, role: str, where: str) -> str:
        text = self._field(row, role, where)
        if not text.strip():
            raise UserError(f"{where}: expected text in field {self.shape.roles[role]!r} ({role}), found it empty")
        return text

    def _check_template(self, template: str) -> None:
        fields = [role for role in (*self.shape.roles, *self.shape.optional) if role not in ANSWERS]
        if self.shape.form in ("text", "label", "messages"):
            raise UserError(
                f"--template: {self.shape.form} examples have none; it goes around prompts and instructions"
            )
        known = {"instruction", "input"} if self.shape.form == "instruction" else set(fields)
        found = _named(template)
        if not found or not set(found) <= known:
            names = " or ".join(f"{{{role}}}" for role in sorted(known, reverse=True))
            raise UserError(f"--template {template!r}: expected {names} in it, where the field's text goes")


def _named(template: str) -> list[str]:
    """The fields in a template; UserError for braces that are none."""
    try:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
        if any(form or conversion or not name or not name.isidentifier() for _, name, form, conversion in parts):
            raise ValueError("a brace that names no field")
    except ValueError as error:
        raise UserError(f"--template {template!r}: {error}; for a brace itself write {{{{ or }}}}") from None
    return [str(name) for _, name, _, _ in parts]


def _key(pieces: list[Piece]) -> str:
    """What stands in front of the first answer."""
    return "".join(str(piece) for piece, _ in takewhile(lambda piece: not piece[1], pieces))


def _last_answer(pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
    """What stands in front of the last answer, none of it learned, and the answer."""
    start = max(number for number, (_, learned) in enumerate(pieces) if not learned) + 1
    return [(piece, False) for piece, _ in pieces[:start]], pieces[start:]


def unread(fields: Mapping[str, Any], shape: Shape) -> list[str]:
    """Names of fields that the shape makes nothing of."""
    used = {*shape.roles.values(), *shape.optional.values()}
    return [name for name in fields if name not in used]
