"""What every runner can do; the engine knows no more of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gpt2.inference.choose import Ask
    from gpt2.inference.request import Span
    from gpt2.inference.rings import Rings
    from gpt2.inference.sampling import Choice
    from gpt2.model.config import GPTConfig


class Runner(Protocol):
    """A model with a pool of pages for keys and values. A step's logits can be asked about until the next step."""

    config: GPTConfig
    pages: int  # in the pool
    max_tokens: int  # new tokens in one step, all spans together
    max_outputs: int  # rows of logits in one step
    rings: Rings  # the pages of banded layers

    def step(self, spans: Sequence[Span]) -> None:
        """Read the spans' tokens; afterwards there is a row of logits for each wanted output, in order."""
        ...

    def choose(self, asks: Sequence[Ask]) -> list[Choice]:
        """A token for each row that is asked about."""
        ...

    def logprobs(self, targets: Sequence[int], rows: Sequence[int] | None = None) -> list[float]:
        """The log-probability (nats) of one token for each row of logits, in order, or for each of `rows`."""
        ...

    def copy_pages(self, pairs: Sequence[tuple[int, int]], rings: Sequence[tuple[int, int]] = ()) -> None:
        """Copy pages (from, to), and pages of rings, whose sources are nobody's targets.

        A text that goes on in two ways shares all but its last, half-filled page, and its ring.
        """
        ...
