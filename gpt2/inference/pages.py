"""Who holds which page of keys and values, and which pages hold what. Numbers only, no tensors.

A page with all of its tokens read is known by a chain: the name of the page before it and its own tokens. So two
texts that begin alike share pages as far as they do, and a text that comes again finds what is still there. Names are
never given twice: a page whose predecessor was lost cannot be found, rather than found wrongly.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import count

from gpt2.inference.request import PAGE_SIZE

Key = tuple[int, tuple[int, ...]]  # the name of the page before (of the first: -1 - adapter), the page's tokens


def pages_for(tokens: int) -> int:
    """Pages that so many tokens fill."""
    return -(-tokens // PAGE_SIZE)


class Pages:
    """A pool of `count` pages, each held by any number of requests.

    Known pages that nobody holds stay until their room is needed; the one given back first goes first.
    """

    def __init__(self, count_: int) -> None:
        self.count = count_
        self._holders = [0] * count_
        self._blank = list(range(count_ - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._found: dict[Key, tuple[int, int]] = {}  # page, name
        self._keys: list[Key | None] = [None] * count_
        self._names = count()

    @property
    def free(self) -> int:
        """Pages that can be taken."""
        return len(self._blank) + len(self._idle)

    def take(self, number: int) -> list[int]:
        """So many pages to write on, at most `free`."""
        if number > self.free:
            raise ValueError(f"{number} pages wanted, {self.free} are free")
        pages = [self._blank.pop() if self._blank else self._evict() for _ in range(number)]
        for page in pages:
            self._holders[page] = 1
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """One more holder for each of these; they must not be written on any more."""
        for page in pages:
            if not self._holders[page]:
                del self._idle[page]
            self._holders[page] += 1

    def give_back(self, pages: Sequence[int]) -> None:
        """One holder less. Of a text's pages the last are lost first: without those before them they are no use."""
        for page in reversed(pages):
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if self._keys[page] is None:
                self._blank.append(page)
            else:
                self._idle[page] = None

    def find(self, chain: int, tokens: tuple[int, ...]) -> tuple[int, int] | None:
        """The page that holds these tokens after the page named `chain`, and its own name."""
        return self._found.get((chain, tokens))

    def know(self, chain: int, tokens: Sequence[int], page: int) -> int:
        """A full page may be found from now on; its name. Where another page holds the same, that one keeps it."""
        key = (chain, tuple(tokens))
        known = self._found.get(key)
        if known is None:
            known = self._found[key] = page, next(self._names)
            self._keys[page] = key
        return known[1]

    def _evict(self) -> int:
        page, _ = self._idle.popitem(last=False)
        key = self._keys[page]
        assert key is not None
        del self._found[key]
        self._keys[page] = None
        return page
