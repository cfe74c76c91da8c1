"""Messages as tokens: a Jinja template, stored where Hugging Face's tools look for it, in tokenizer_config.json.

A template comes with a model, from anywhere: it runs in Jinja's sandbox. And what messages say is never taken for a
special token of the template's, whatever they spell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from gpt2.errors import UserError
from gpt2.tokenizer.vocabulary import EOT

if TYPE_CHECKING:
    import jinja2

    from gpt2.tokenizer.bpe import Tokenizer

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}
Piece = tuple[str | int, bool]  # a text or the id of a special token, and whether it is to be learned

# Headings of words that a small vocabulary has too. What is said begins a line, so that no space hangs at either end.
DEFAULT_TEMPLATE = """\
{% for message in messages %}
{{ ('' if loop.first else '\\n\\n') + '### ' + message['role'] | capitalize + ':\\n' + message['content'] | trim }}
{%- if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ ('\\n\\n' if messages else '') + '### Assistant:\\n' }}{% endif %}"""


class ChatTemplate:
    """A template over one tokenizer. Raises UserError for a source that is no Jinja."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        self.source, self.tokenizer = source, tokenizer
        self._template = _compiled(source)
        self._eot = EOT if tokenizer.eot_id is not None else ""
        names = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(map(re.escape, names))})" if names else "(?!)()")

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ChatTemplate:
        """The tokenizer's own template, or the default one where it has none."""
        return cls(tokenizer.chat_template or DEFAULT_TEMPLATE, tokenizer)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The messages as text, special tokens spelled out, as Hugging Face's `apply_chat_template` gives it.

        Raises UserError with the template's own complaint, such as about an order of roles that it does not know.
        """
        tokens = dict.fromkeys(("bos_token", "eos_token", "unk_token"), self._eot)
        unused = {"tools": None, "documents": None}  # as transformers has them: templates ask whether they are None
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **tokens,
                **unused,
            )
        except Exception as error:  # a stranger's template can raise whatever it likes
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(f"chat template: {reason}") from None

    def pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """The messages up to the last answer, cut where the assistant begins and ends; each text is encoded alone.

        So the ids in front of an answer are those that a user gets who asks for it (`turn`). The special token that
        ends an answer is learned with it; white space behind that is not. Raises UserError where the template writes
        a message otherwise once another follows it.
        """
        messages, guard = self._guarded(messages)
        pieces: list[Piece] = []
        done = ""
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self.render(messages[:number], add_generation_prompt=True)
                until = self.render(messages[: number + 1])
                answer = _behind(before, until)
                answer = answer[: self._end_of(answer)]
                pieces += self._split(_behind(done, before), guard, False) + self._split(answer, guard, True)
                done = before + answer
        return pieces

    def turn(self, before: Sequence[Message], message: Message) -> list[int]:
        """Ids that go behind the last answer of `before`, as the model wrote it, so that it answers `message`.

        Raises UserError as `pieces` does.
        """
        told, guard = self._guarded([*before, message])
        done = ""
        if before:  # whatever was answered: its ids are there already
            told = [*told[:-2], {**told[-2], "content": "X"}, told[-1]]
            done = self.render(told[:-2], add_generation_prompt=True) + "X"
        text = _behind(done, self.render(told, add_generation_prompt=True))
        encode = self.tokenizer.encode
        pieces = [piece for piece, _ in self._split(text, guard, False)]
        return [id for piece in pieces for id in ([piece] if isinstance(piece, int) else encode(piece))]

    @cached_property
    def stop(self) -> str:
        """The text that ends an answer where end-of-text does not; else empty."""
        question, answer = {"role": "user", "content": "X"}, {"role": "assistant", "content": "X"}
        done = self.render([question], add_generation_prompt=True) + "X"
        follows = _behind(done, self.render([question, answer, {**question, "content": "\ue000"}]))
        between = follows.partition("\ue000")[0]
        special = self._special.search(between)
        if special is None:
            return between
        return "" if special[0] == EOT else special[0]

    def _end_of(self, answer: str) -> int:
        """Where an answer ends: behind its last special token if only white space follows that."""
        ends = [found.end() for found in self._special.finditer(answer)]
        return ends[-1] if ends and not answer[ends[-1] :].strip() else len(answer)

    def _guarded(self, messages: Sequence[Message]) -> tuple[list[dict[str, str]], str]:
        """The messages with a character in each special token that they spell, and that character: used by none."""
        said = "".join(text for message in messages for text in message.values())
        guard = next(char for char in map(chr, range(0xE000, 0xF8FF)) if char not in said)
        broken = {name: name[0] + guard + name[1:] for name in self.tokenizer.special_tokens if name in said}
        guarded = [dict(message) for message in messages]
        if broken:
            guarded = [
                {key: self._special.sub(lambda m: broken[m[0]], text) for key, text in m.items()} for m in guarded
            ]
        return guarded, guard

    def _split(self, text: str, guard: str, learned: bool) -> list[Piece]:
        """A rendered text as texts and special tokens."""
        parts = self._special.split(text)
        special = self.tokenizer.special_tokens
        pieces = [special[part] if n % 2 else part.replace(guard, "") for n, part in enumerate(parts)]
        return [(piece, learned) for piece in pieces if piece != ""]


def parse_message(value: Any, where: str) -> dict[str, str]:
    """A message out of JSON; UserError where it has no role or no text."""
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        raise UserError(f"{where}: expected a message with role and content, found {json.dumps(value)[:60]}")
    if not isinstance(value.get("content"), str):
        raise UserError(f"{where}: expected text as the content of the {value['role']}'s message")
    return {"role": value["role"], "content": value["content"]}


def _behind(done: str, text: str) -> str:
    """What `text` has behind `done`, with which it must begin."""
    if not text.startswith(done):
        raise UserError(
            "chat template: writes a message otherwise once another follows, so answers cannot be told apart; use a "
            "template that writes each message once and for all"
        )
    return text[len(done) :]


@lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    """The template as transformers compiles it (utils/chat_template_utils.py): the same blanks, the same helpers."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, around an assistant's words: read, and not needed."""

        tags = {"generation"}  # noqa: RUF012  (as in jinja2)

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"chat template line {error.lineno}: {error.message}") from None
