"""Room for texts in layers that look back on a band of tokens only: pages written on in turn, as many at any length.

A token at position p of such a text lies in the ring's slot p modulo its slots: what it overwrites is so far back that
no token still to come sees it, nor any of those that a step may have to take back (drafts that were wrong).
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt2.inference.pages import pages_for
from gpt2.inference.request import Span
from gpt2.model.config import GPTConfig

SHORTEST_CHUNK = 64  # tokens of a prompt: fewer at a time leave a processor's kernels waiting for weights


@dataclass(frozen=True)
class Rings:
    """A pool of `count` pages for banded layers, of which a text holds at most `each`; both 0 where there are none.

    `max_span`: new tokens of one text that a step may read; `each` is made for these.
    """

    each: int
    count: int
    max_span: int

    def of(self, tokens: int) -> int:
        """Pages of a ring that so many tokens of a text take."""
        return min(pages_for(tokens), self.each)

    def check(self, span: Span) -> None:
        """ValueError for a span that is too long, or for which its ring does not do."""
        count, ring = len(span.tokens), span.ring
        if count > self.max_span or not self.of(span.start + count) <= len(ring) <= self.each:
            raise ValueError(f"a span of {count} tokens from {span.start} on a ring of {len(ring)} pages; "
                             f"made for {self.max_span} and {self.each}")  # fmt: skip
        if ring and not 0 <= min(ring) <= max(ring) < self.count:
            raise ValueError(f"pages {min(ring)} to {max(ring)} of {self.count} for rings")


def no_rings(max_tokens: int) -> Rings:
    """Those of a model without banded layers."""
    return Rings(0, 0, max_tokens)


def rings_for(config: GPTConfig, pages: int, max_tokens: int, max_span: int = 0) -> Rings:
    """What goes with a pool of `pages` for the other layers: rings for as many texts of full length, at least one.

    A step's last token overwrites what lies a ring before it, its first sees band_width - 1 tokens back: so a ring has
    band_width + max_span - 1 slots, rounded up to whole pages. `max_span` 0: a band of tokens, at least 64.
    """
    if not config.band_width:
        return no_rings(max_tokens)
    span = min(max_span or max(config.band_width, SHORTEST_CHUNK), max_tokens, config.context_length)
    each = pages_for(min(config.band_width + span - 1, config.context_length))
    full = pages_for(config.context_length)
    return Rings(each, max(each, -(-pages * each // full)), span)
