"""What the engine asks of a runner, in plain numbers, and what it knows of each sequence that it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt2.inference.rows import Row

PAGE_SIZE = 16  # tokens; one lane each in the processor's kernels


@dataclass(frozen=True)
class Span:
    """One sequence's share of a step.

    `tokens` are new and at least one; `start` is the position of the first of them, so many lie in the pages already
    (a start below that takes tokens back). `pages` hold positions 0 to start + len(tokens) - 1 and maybe more.
    `outputs` counts the last tokens after which logits are wanted: 0 in the middle of a prompt, k + 1 to check k
    drafts. `adapter` 0 is none. `ring` are the pages of banded layers (see rings.py): as `pages`, up to so many as a
    ring has, which are then written on in turn; empty for models without such layers.
    """

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]
    outputs: int = 1
    adapter: int = 0
    ring: Sequence[int] = ()


class State(Enum):
    """Where a request stands."""

    WAITING = "waiting"  # it holds no pages: it has just come, or it gave way to an older one
    RUNNING = "running"
    OVER = "over"  # finished or cancelled


@dataclass(eq=False)
class Request:
    """One sequence that the runner reads, and the texts that it writes.

    `window` holds the tokens that the model sees, as the plain loop's Reader has them: past the context length the
    last half is kept, `start` counts what is forgotten, and all of it is read again from position 0. The keys of the
    window's first `done` tokens lie in `pages` and, of banded layers, the last of these in `ring`; when all but the
    last are read, it takes one token a step. Several samples of one prompt are one request until the prompt is read.
    """

    window: list[int]
    context_length: int
    rows: list[Row]
    order: tuple[int, int] = (0, 0)  # who came first: the prompt's number, the sample
    adapter: int = 0
    state: State = State.WAITING
    start: int = 0
    done: int = 0
    pages: list[int] = field(default_factory=list)
    ring: list[int] = field(default_factory=list)
    known: int = 0  # its first pages that others can find
    chain: int = 0  # what the last of these is called; see Pages
    drafts: Sequence[int] = ()  # guesses at what follows the window, checked by the next step

    def __post_init__(self) -> None:
        self.forget()

    @property
    def unread(self) -> int:
        """Tokens of the window without keys: at least one."""
        return len(self.window) - self.done

    def append(self, tokens: Sequence[int]) -> bool:
        """What was written goes into the window; True if it had to slide, so that its pages hold nothing of use."""
        self.window += tokens
        if len(self.window) <= self.context_length:
            return False
        keep = max(1, self.context_length // 2)
        self.start += len(self.window) - keep
        del self.window[:-keep]
        return True

    def forget(self) -> None:
        """Nothing is read any more, no page is held."""
        self.pages, self.ring = [], []
        self.done = self.known = 0
        self.chain = -1 - self.adapter  # texts of different adapters share nothing
