"""What readings have in common at their beginnings: a tree of parts, each of which is read once. No tensors.

A part is read behind those above it. Only beginnings can be shared: a token's keys depend on its position and on all
that stands before it, so two windows that overlap in the middle of a text have nothing in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gpt2.inference.pages import pages_for

Ids = Sequence[int]
LEAST = 4  # tokens that a part of its own is worth: fewer are read again


@dataclass(frozen=True)
class Reading:
    """Tokens to be read from position 0, and those that are to follow its last ones: one target for each of these."""

    tokens: Ids
    targets: Ids

    @property
    def silent(self) -> int:
        """The position of the first token after which a target follows."""
        return len(self.tokens) - len(self.targets)


@dataclass(eq=False)
class Part:
    """Tokens from position `start`, after those of the part `before`; and which readings want logits after some."""

    tokens: Ids
    start: int
    before: Part | None = None
    after: list[Part] = field(default_factory=list)
    readings: list[int] = field(default_factory=list)
    silent: int = -1  # the position of the first token after which logits are wanted; `end` if none are
    done: int = 0  # of its tokens
    pages: list[int] = field(default_factory=list)
    ring: list[int] = field(default_factory=list)
    unbegun: int = 0  # parts after it that have no pages yet

    def __post_init__(self) -> None:
        self.silent = self.end

    @property
    def end(self) -> int:
        """The position after its last token."""
        return self.start + len(self.tokens)


def grow(readings: Sequence[Reading], share: bool = True) -> list[Part]:
    """The roots of the trees that hold all readings; without `share` each reading has a tree of its own."""
    roots: list[Part] = []
    path: list[Part] = []  # from a root to the leaf of the reading before
    last: Ids = ()
    leaves: dict[int, Part] = {}
    for place in sorted(range(len(readings)), key=lambda place: tuple(readings[place].tokens)):
        tokens = readings[place].tokens
        path = _branch(roots, path, common(last, tokens)) if share else []
        known = path[-1].end if path else 0
        if known < len(tokens):
            leaf = Part(tokens[known:], known, path[-1] if path else None)
            (path[-1].after if path else roots).append(leaf)
            path.append(leaf)
        leaves[place], last = path[-1], tokens
    for place, leaf in leaves.items():
        _want(leaf, place, readings[place].silent)
    return roots


def common(one: Ids, other: Ids) -> int:
    """How many tokens they begin with alike."""
    length = min(len(one), len(other))
    return next((place for place in range(length) if one[place] != other[place]), length)


def most_pages(roots: Sequence[Part]) -> int:
    """Pages that are enough for any one reading: a part that ends within a page leaves the next one a copy of it."""
    most, left = 0, [(root, 1) for root in roots]
    while left:
        part, depth = left.pop()
        most = max(most, pages_for(part.end) + depth - 1)
        left += [(other, depth + 1) for other in part.after]
    return most


def _branch(roots: list[Part], path: list[Part], shared: int) -> list[Part]:
    """The path down to where a text that has `shared` tokens in common with it leaves it.

    A part is cut in two where that is in its middle, unless it is hardly worth it.
    """
    while path and path[-1].end > shared:
        *path, part = path
        if shared - part.start >= LEAST:
            return [*path, _cut(roots, part, shared)]
        shared = min(shared, part.start)
    return path


def _cut(roots: list[Part], part: Part, at: int) -> Part:
    """Give the last part's tokens up to position `at` to a new one above it, which is returned."""
    count = at - part.start
    upper = Part(part.tokens[:count], part.start, part.before, [part])
    (part.before.after if part.before else roots)[-1] = upper
    part.tokens, part.start, part.before = part.tokens[count:], at, upper
    return upper


def _want(leaf: Part, reading: int, silent: int) -> None:
    """Tell the parts of a reading that it wants logits from position `silent` on."""
    part: Part | None = leaf
    while part and part.end > silent:
        part.readings.append(reading)
        part.silent = min(part.silent, max(silent, part.start))
        part = part.before
