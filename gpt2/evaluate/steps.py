"""Reads trees of parts through a runner, as many parts a step as it takes, and asks how likely each target was.

A step never reads what another span of it writes: parts begin when the one before them is read. The deepest go first,
so that pages are soon free again; no others begin unless there is room for what goes first up to its end.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING

from gpt2.evaluate.prefixes import Part, Reading, grow, most_pages
from gpt2.inference.choose import Ask
from gpt2.inference.pages import Pages, pages_for
from gpt2.inference.request import PAGE_SIZE, Span
from gpt2.inference.sampling import SamplingParams

if TYPE_CHECKING:
    from gpt2.inference.runners.base import Runner

Progress = Callable[[int, int], None]  # tokens read so far, tokens to read
GREEDY = SamplingParams(temperature=0.0)
NO_DRAWS = random.Random(0)  # greedy choices draw nothing


@dataclass
class Found:
    """The log-probability (nats) of each of a reading's targets, and whether each is the likeliest token."""

    logprobs: list[float] = field(default_factory=list)
    likeliest: list[bool] = field(default_factory=list)


def read(
    runner: Runner, readings: Sequence[Reading], progress: Progress | None = None, greedy: bool = True
) -> list[Found]:
    """What the model thinks of each reading's targets, in order; without `greedy` not whether they are the likeliest.

    The runner's pages must hold the longest reading, or ValueError; where they hold hardly more, nothing is shared.
    Nothing either where layers are banded, as a ring holds only the end of what was read.
    """
    roots = grow(readings, share=not runner.rings.each)
    if most_pages(roots) > runner.pages:
        roots = grow(readings, share=False)
    return Steps(runner, readings, roots, greedy).run(progress)


class Steps:
    """The parts that can be read, the next one last; each unfinished part is there once its predecessor is read."""

    def __init__(self, runner: Runner, readings: Sequence[Reading], roots: Sequence[Part], greedy: bool) -> None:
        self.runner, self.readings, self.greedy = runner, readings, greedy
        self.found = [Found() for _ in readings]
        self.pages, self.rings = Pages(runner.pages), Pages(runner.rings.count)
        self.reserve = most_pages(roots)
        self.ready = list(reversed(roots))

    def run(self, progress: Progress | None) -> list[Found]:
        """Read everything."""
        done, total = 0, self._total()
        while self.ready:
            chosen = self._choose_parts()
            self.runner.step([self._span(part, count) for part, count in chosen])
            self._collect(chosen)
            for part, count in reversed(chosen):
                self._advance(part, count)
            done += sum(count for _, count in chosen)
            if progress:
                progress(done, total)
        return self.found

    def _total(self) -> int:
        total, left = 0, list(self.ready)
        while left:
            part = left.pop()
            total += len(part.tokens)
            left += part.after
        return total

    def _choose_parts(self) -> list[tuple[Part, int]]:
        """Parts for the next step with how many tokens of each; they leave the queue."""
        chosen: list[tuple[Part, int]] = []
        copies: list[tuple[int, int]] = []
        tokens, outputs, longest = self.runner.max_tokens, self.runner.max_outputs, self.runner.rings.max_span
        while self.ready and tokens:
            part = self.ready[-1]
            left, silent = len(part.tokens) - part.done, max(0, part.silent - part.start - part.done)
            count = min(tokens, longest, left, silent + outputs)
            if not count or not self._begin(part, copies, first=not chosen):
                break
            chosen.append((self.ready.pop(), count))
            tokens, outputs = tokens - count, outputs - wanted(part, count)
        if copies:
            self.runner.copy_pages(copies)
        return chosen

    def _begin(self, part: Part, copies: list[tuple[int, int]], first: bool) -> bool:
        """See that it has pages for all of its tokens; False if it is to wait until others are done.

        It shares the full pages of those before it and goes on on a copy of a half-filled one; the last to begin there
        goes on on that page itself.
        """
        if part.pages:
            return True
        before = part.before
        last = before is not None and before.unbegun == 1
        known = pages_for(part.start) if last else part.start // PAGE_SIZE
        need = pages_for(part.end) - known
        ring = self.runner.rings.of(part.end)
        if not first and (self.pages.free - need < self.reserve or self.rings.free < ring):
            return False
        part.ring = self.rings.take(ring)
        part.unbegun = len(part.after)
        fresh = self.pages.take(need)
        if before is None:
            part.pages = fresh
            return True
        part.pages = before.pages[:known] + fresh
        before.unbegun -= 1
        if last:
            before.pages = []
        else:
            self.pages.share(before.pages[:known])
            if part.start % PAGE_SIZE:
                copies.append((before.pages[known], fresh[0]))
        return True

    def _span(self, part: Part, count: int) -> Span:
        tokens = part.tokens[part.done : part.done + count]
        return Span(tokens, part.start + part.done, part.pages, wanted(part, count), ring=part.ring)

    def _collect(self, chosen: Sequence[tuple[Part, int]]) -> None:
        """Ask about each target behind what was just read."""
        owners: list[int] = []
        rows: list[int] = []
        targets: list[int] = []
        row = 0
        for part, count in chosen:
            outputs, end = wanted(part, count), part.start + part.done + count
            for place in part.readings if outputs else ():
                reading = self.readings[place]
                first = max(0, end - outputs - reading.silent)
                own = reading.targets[first : max(0, end - reading.silent)]
                owners += repeat(place, len(own))
                rows += range(row + outputs - len(own), row + outputs)
                targets += own
            row += outputs
        if targets:
            self._ask(owners, rows, targets, row)

    def _ask(self, owners: Sequence[int], rows: Sequence[int], targets: Sequence[int], outputs: int) -> None:
        for place, value in zip(owners, self.runner.logprobs(targets, rows), strict=True):
            self.found[place].logprobs.append(value)
        if self.greedy:
            best = self.runner.choose([Ask(row, (), (), GREEDY, NO_DRAWS) for row in range(outputs)])
            for place, row, target in zip(owners, rows, targets, strict=True):
                self.found[place].likeliest.append(best[row].token == target)

    def _advance(self, part: Part, count: int) -> None:
        """So many more of its tokens are read: it goes back into the queue, or those after it come, or it is over."""
        part.done += count
        if part.done < len(part.tokens):
            self.ready.append(part)
        elif part.after:
            self.ready += reversed(part.after)
        else:
            self.pages.give_back(part.pages)
            self.rings.give_back(part.ring)
            part.pages, part.ring = [], []


def wanted(part: Part, count: int) -> int:
    """Logits that are wanted after the next `count` tokens of a part: after the last so many of them."""
    return min(count, max(0, part.start + part.done + count - part.silent))
