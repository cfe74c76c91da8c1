"""What `prepare` can be told, and what of it decides the bytes that are written."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import Literal, get_args

from gpt2.data.shards import Format
from gpt2.errors import UserError

SplitRule = Literal["auto", "document", "position"]
Errors = Literal["strict", "replace", "ignore"]


@dataclass(frozen=True)
class Options:
    """`None` is a default that depends on the sources. The number of threads is not here: it changes no byte."""

    tokenizer: str = "auto"
    split: SplitRule = "auto"
    val_fraction: float | None = None
    eot: bool | None = None
    seed: int = 0
    text_column: str | None = None
    encoding: str | None = None
    errors: Errors = "strict"
    format: Format = "nanogpt"
    shard_tokens: int | None = None

    def check(self) -> None:
        """Raise UserError naming the flag that cannot be followed."""
        for flag, value, choices in (
            ("split", self.split, get_args(SplitRule)),
            ("errors", self.errors, get_args(Errors)),
            ("format", self.format, get_args(Format)),
        ):
            if value not in choices:
                raise UserError(f"--{flag} {value}: unknown; choose {', '.join(choices)}")
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise UserError(f"--val-fraction {self.val_fraction}: must lie between 0 and 1")
        if self.shard_tokens is not None and not 1 <= self.shard_tokens < 2**31:
            raise UserError(f"--shard-tokens {self.shard_tokens}: must be at least 1 and below 2**31")
        self._check_encoding(self.encoding or "utf-8")

    @staticmethod
    def _check_encoding(name: str) -> None:
        try:
            "".encode(name)  # refuses codecs that are not of text, such as base64
            codecs.getincrementaldecoder(name)
        except LookupError:
            raise UserError(f"--encoding {name}: unknown; such as utf-8, latin-1, cp1252 or utf-16") from None
