"""What every runner can do; the engine knows no more of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from gpt2.errors import UserError

if TYPE_CHECKING:
    from gpt2.inference.choose import Ask
    from gpt2.inference.request import Span
    from gpt2.inference.sampling import Choice
    from gpt2.model.config import GPTConfig


class Runner(Protocol):
    """A model with a pool of pages for keys and values. A step's logits can be asked about until the next step."""

    config: GPTConfig
    pages: int  # in the pool
    max_tokens: int  # new tokens in one step, all spans together
    max_outputs: int  # rows of logits in one step

    def step(self, spans: Sequence[Span]) -> None:
        """Read the spans' tokens; afterwards there is a row of logits for each wanted output, in order."""
        ...

    def choose(self, asks: Sequence[Ask]) -> list[Choice]:
        """A token for each row that is asked about."""
        ...

    def logprobs(self, targets: Sequence[int], rows: Sequence[int] | None = None) -> list[float]:
        """The log-probability (nats) of one token for each row of logits, in order, or for each of `rows`."""
        ...

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy pages (from, to): a text that goes on in two ways shares all but its last, half-filled page."""
        ...


def refuse_sparse(config: GPTConfig) -> None:
    """UserError for layers that do not look back on everything, where a runner knows only those that do."""
    if not config.is_dense:
        pattern = ",".join(config.attention_pattern)
        raise UserError(f"attention_pattern {pattern}: the engine's runners are for dense layers; "
                        "gpt2.inference.generate.generate(model.module, ...) writes with any")  # fmt: skip
