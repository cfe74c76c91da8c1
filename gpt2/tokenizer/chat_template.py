"""Messages as text: a Jinja template, stored where Hugging Face's tools look for it, in tokenizer_config.json.

A template comes with a model, from anywhere: it runs in Jinja's sandbox, and what messages say is never taken for a
special token, whatever they spell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from gpt2.errors import UserError
from gpt2.tokenizer.vocabulary import EOT

if TYPE_CHECKING:
    import jinja2

    from gpt2.tokenizer.bpe import Tokenizer

Message = Mapping[str, str]

# Headings of words that a small vocabulary has too; what is said begins a line, so no space hangs at either end.
DEFAULT_TEMPLATE = """\
{% for message in messages %}
{{ '### ' + message['role'] | capitalize + ':\\n' + message['content'] | trim }}
{%- if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}
{{ '\\n\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"""


class ChatTemplate:
    """A template over one tokenizer. Raises UserError for a source that is no Jinja."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        self.source, self.tokenizer = source, tokenizer
        self._template = _compiled(source)
        self._special = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._eot = EOT if tokenizer.eot_id is not None else ""

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The messages as text, special tokens spelled out, as Hugging Face's `apply_chat_template` gives it.

        Raises UserError with the template's own complaint, such as about an order of roles that it does not know.
        """
        names = {"eos_token": self._eot, "bos_token": self._eot, "unk_token": self._eot, "pad_token": self._eot}
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=add_generation_prompt, **names, tools=None, documents=None
            )
        except Exception as error:  # whatever a stranger's template does
            raise UserError(f"chat template: {str(error).splitlines()[0] if str(error) else error!r}") from None

    def pieces(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        """The messages cut at what the assistant says: (text, whether it does), in turns, to be encoded apart.

        So the ids before an answer are those that a user's messages have with `add_generation_prompt`. What ends an
        answer is the assistant's too. Raises UserError where the template writes a message otherwise once the next
        one is there.
        """
        raise NotImplementedError

    def encode(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Token ids, and which of them the assistant says."""
        raise NotImplementedError

    def turn(self, before: Sequence[Message], message: Message) -> list[int]:
        """What goes behind the last answer's own tokens so that the assistant answers `message`: ids."""
        raise NotImplementedError

    @property
    def stop(self) -> str:
        """The text that ends an answer, where that is not end-of-text; else empty."""
        raise NotImplementedError
