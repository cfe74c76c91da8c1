"""The pages that texts hold, of both kinds: those that grow with a text, and its ring (see rings.py). Numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gpt2.inference.pages import Pages, pages_for
from gpt2.inference.request import PAGE_SIZE
from gpt2.inference.rings import Rings

Need = tuple[int, int]  # pages, and pages of rings


class Holder(Protocol):
    """One text: a request, or what a smaller model has read of it."""

    pages: list[int]
    ring: list[int]

    def forget(self) -> None:
        """It holds none any more."""
        ...


class Room:
    """A pool of pages and one of rings' pages; whoever gets in or on takes of both, or of neither.

    A full page of a text never changes, so others may read it too; a ring's pages are written on again and again, so
    each text has its own.
    """

    def __init__(self, pages: int, rings: Rings) -> None:
        self.pages, self.rings = Pages(pages), Pages(rings.count)
        self._sizes = rings

    def short(self, holder: Holder, tokens: int) -> Need:
        """What the holder lacks to hold so many tokens."""
        pages, ring = pages_for(tokens) - len(holder.pages), self._sizes.of(tokens) - len(holder.ring)
        return max(0, pages), max(0, ring)

    def holds(self, holder: Holder) -> int:
        """The tokens for which the holder has pages."""
        held = len(holder.pages)
        if len(holder.ring) < self._sizes.each:
            held = min(held, len(holder.ring))
        return held * PAGE_SIZE

    def has(self, needs: Sequence[Need]) -> bool:
        """Whether there is enough for all of these together."""
        return sum(need[0] for need in needs) <= self.pages.free and sum(need[1] for need in needs) <= self.rings.free

    def cover(self, holder: Holder, tokens: int) -> bool:
        """Give the holder what it lacks to hold so many tokens; False, and nothing, where that is not there."""
        need = self.short(holder, tokens)
        if not self.has([need]):
            return False
        holder.pages += self.pages.take(need[0])
        holder.ring += self.rings.take(need[1])
        return True

    def spare(self, holder: Holder, drafts: int, running: Sequence[Holder]) -> bool:
        """Whether the holder can have pages for drafts while all that run go on for a page each."""
        pages = pages_for(drafts)
        return self._beside(running, (pages, min(pages, self._sizes.each - len(holder.ring))))

    def can_fork(self, holder: Holder, running: Sequence[Holder]) -> bool:
        """Whether another can go on from what the holder has read, while all that run go on for a page each."""
        return self._beside(running, (1, len(holder.ring) + self._grows(holder)))

    def release(self, holder: Holder) -> None:
        """Take back all that it holds; what it has read is lost to it."""
        self.pages.give_back(holder.pages)
        self.rings.give_back(holder.ring)
        holder.forget()

    def _beside(self, running: Sequence[Holder], need: Need) -> bool:
        return self.has([(len(running), sum(map(self._grows, running))), need])

    def _grows(self, holder: Holder) -> bool:
        """Whether its ring is not yet whole."""
        return len(holder.ring) < self._sizes.each
