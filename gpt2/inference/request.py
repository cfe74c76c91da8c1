"""What the engine asks of a runner, in plain numbers: spans of tokens and the pages that hold their keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PAGE_SIZE = 16  # tokens; one lane each in the processor's kernels


@dataclass(frozen=True)
class Span:
    """One sequence's share of a step.

    `tokens` are new and at least one; `start` is the position of the first of them, so many lie in the pages already
    (a start below that takes tokens back). `pages` hold positions 0 to start + len(tokens) - 1 and maybe more.
    `outputs` counts the last tokens after which logits are wanted: 0 in the middle of a prompt, k + 1 to check k
    drafts. `adapter` 0 is none.
    """

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]
    outputs: int = 1
    adapter: int = 0
