"""What the next step reads: continuous batching in plain numbers, without tensors.

Requests that write take one token each, then those whose prompt (or slid window) is unread take what the step has
room for, the oldest first. When pages run out, the youngest gives way: it waits, and is read again later. So the
oldest always goes on, and nobody is passed over for ever.

Texts that begin alike share pages where all layers look back on everything. A model with banded layers shares none
between requests, as a ring holds only the end of what was read: its prompts are read each by itself, but the samples
of one prompt go on from one reading, each with a copy of the ring.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Sequence

from gpt2.errors import UserError
from gpt2.inference.pages import Key, pages_for
from gpt2.inference.request import PAGE_SIZE, Request, Span, State
from gpt2.inference.rings import Rings, no_rings
from gpt2.inference.room import Room
from gpt2.inference.rows import Row

MAX_STREAMS = 16


def by_order(request: Request) -> tuple[int, int]:
    """The key that requests are sorted by."""
    return request.order


def without(copies: list[tuple[int, int]], pages: Sequence[int]) -> list[tuple[int, int]]:
    """The copies (from, to) that go to none of these pages."""
    return [copy for copy in copies if copy[1] not in pages]


class Scheduler:
    """Requests over a pool of `pages`, and one of `rings` for banded layers; at most `max_streams` run at a time.

    A step has at most `max_tokens` new tokens, `rings.max_span` of one text, and `max_outputs` rows of logits.
    """

    def __init__(
        self,
        pages: int,
        max_tokens: int,
        max_outputs: int,
        max_streams: int = MAX_STREAMS,
        rings: Rings | None = None,
    ) -> None:
        rings = rings or no_rings(max_tokens)
        self.room = Room(pages, rings)
        self.pages, self.rings = self.room.pages, self.room.rings
        self.shares = not rings.each  # whether a text may read pages that another has written
        self.max_tokens, self.max_span = max_tokens, rings.max_span
        self.max_streams = min(max_streams, max_tokens, max_outputs)
        self.max_drafts = min(max_tokens, max_outputs) - self.max_streams  # in one step, so that all can go on
        self.running: list[Request] = []  # the oldest first
        self.copies: list[tuple[int, int]] = []  # half-filled pages (from, to) to copy before the next step
        self.ring_copies: list[tuple[int, int]] = []  # and pages of rings
        self.preemptions = self.shared = 0  # requests that gave way; tokens found instead of read
        self._waiting: list[tuple[tuple[int, int], Request]] = []  # a heap
        self._plan: dict[Request, Span] = {}
        self._being_read: set[Key] = set()  # full pages that the plan begins to read
        self._budget = 0

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.running or self._next())

    def check(self, prompt: int, max_new_tokens: int, context_length: int) -> None:
        """Refuse, with UserError, a text that would not fit even if it were alone."""
        longest = min(context_length, prompt + max_new_tokens - 1)
        if pages_for(longest) > self.pages.count:
            raise UserError(
                f"the prompt's {prompt} tokens and max_new_tokens = {max_new_tokens} need room for {longest} tokens, "
                f"the engine has it for {self.pages.count * PAGE_SIZE}; "
                f"shorten one, or make the runner with pages={pages_for(longest)} or more"
            )

    def add(self, request: Request) -> None:
        """It waits for its turn. `check` it first."""
        request.state = State.WAITING
        heapq.heappush(self._waiting, (request.order, request))

    def finish(self, request: Request) -> None:
        """It is done with, or not wanted any more, at whatever point."""
        if request.state is State.RUNNING:
            self.running.remove(request)
        self._release(request)
        request.state = State.OVER

    def writing(self) -> list[Request]:
        """Those that take one token in the next step, so that drafts could be checked with it."""
        return [request for request in self.running if request.unread == 1 and len(request.rows) == 1]

    def plan(self) -> dict[Request, Span]:
        """The next step's spans; it is empty only if nothing is left to do."""
        self._budget = self.max_tokens
        self._being_read.clear()
        for request in tuple(self.running):
            if request.unread == 1 and request.state is State.RUNNING:  # else it has just given way
                self._write(request)
        for request in tuple(self.running):
            if request.unread > 1 and request.state is State.RUNNING:
                self._read(request)
        self._admit()
        plan, self._plan = self._plan, {}
        return plan

    def advance(self, request: Request, read: int, tokens: Sequence[int] = ()) -> None:
        """A step has read so many tokens of the request, and `tokens` were written."""
        slid = request.append(tokens)
        if slid:
            self._release(request)
            return
        request.done += read
        while self.shares and (request.known + 1) * PAGE_SIZE <= request.done:
            place = request.known * PAGE_SIZE
            tokens = request.window[place : place + PAGE_SIZE]
            request.chain = self.pages.know(request.chain, tokens, request.pages[request.known])
            request.known += 1

    def fork(self, request: Request, row: Row) -> Request:
        """Another sample of the prompt that the request has read; it shares the pages and goes on on its own.

        The last page, if half-filled, is to be copied (`copies`), and the ring (`ring_copies`). Where there is no room
        now, it waits.
        """
        full, rest = divmod(request.done, PAGE_SIZE)
        twin = Request(
            list(request.window), request.context_length, [row], (request.order[0], row.sample), request.adapter
        )
        if len(self.running) >= self.max_streams or not self.room.can_fork(request, self.running):
            self.add(twin)
            return twin
        twin.pages = request.pages[:full]
        self.pages.share(twin.pages)
        if rest:
            twin.pages += self.pages.take(1)
            self.copies.append((request.pages[full], twin.pages[full]))
        twin.ring = self.rings.take(len(request.ring))
        self.ring_copies += zip(request.ring, twin.ring, strict=True)
        twin.done, twin.known, twin.chain = request.done, request.known, request.chain
        self._run(twin)
        return twin

    def _write(self, request: Request) -> None:
        """One token, and the drafts behind it as far as pages can be had without anybody's loss."""
        length = len(request.window)
        drafts = request.drafts
        if drafts and self.room.spare(request, len(drafts), self.running):
            self._cover(request, length + len(drafts))
        elif drafts:
            drafts = drafts[: max(0, self.room.holds(request) - length)]
        if self._cover(request, length):
            request.drafts = drafts
            self._put(request, (request.window[-1], *drafts), length - 1, 1 + len(drafts))

    def _read(self, request: Request) -> None:
        """As much of what is unread as the step has room for."""
        self._share(request)
        ahead = self._page_ahead(request)
        count = min(request.unread, self._budget, self.max_span)
        end = request.done + count
        if count and self._cover(request, end):
            if ahead:
                self._being_read.add(ahead)
            last = end == len(request.window)
            self._put(request, request.window[request.done : end], request.done, int(last))

    def _put(self, request: Request, tokens: Sequence[int], start: int, outputs: int) -> None:
        self._plan[request] = Span(tokens, start, request.pages, outputs, request.adapter, request.ring)
        self._budget -= len(tokens)

    def _cover(self, request: Request, tokens: int) -> bool:
        """See that its pages hold so many tokens; False if it was itself the one to give way."""
        while not self.room.cover(request, tokens):
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        span = self._plan.pop(request, None)
        self._budget += len(span.tokens) if span else 0
        self.running.remove(request)
        self._release(request)
        self.preemptions += 1
        self.add(request)

    def _admit(self) -> None:
        """Let waiting requests in, in order, while there is room for all that each has to read."""
        while self._budget and len(self.running) < self.max_streams:
            request = self._next()
            if request is None or not self._fits(request):
                return
            heapq.heappop(self._waiting)
            self._run(request)
            self._read(request)

    def _next(self) -> Request | None:
        """Who has waited longest."""
        while self._waiting and self._waiting[0][1].state is State.OVER:
            heapq.heappop(self._waiting)
        return self._waiting[0][1] if self._waiting else None

    def _fits(self, request: Request) -> bool:
        """Whether there are pages for it, and for those that run to go on for a page: else it soon gives way again.

        It also waits while another reads what it would read, and then shares that.
        """
        self._share(request)
        needs = [self.room.short(other, len(other.window) + PAGE_SIZE) for other in self.running]
        needs.append(self.room.short(request, len(request.window)))
        if self.room.has(needs) and self._page_ahead(request) not in self._being_read:
            return True
        self.shared -= request.done
        self._release(request)
        return False

    def _run(self, request: Request) -> None:
        request.state = State.RUNNING
        insort(self.running, request, key=by_order)

    def _share(self, request: Request) -> None:
        """Take over pages that hold what it would read next; its last token is read in any case, for the logits."""
        while (ahead := self._page_ahead(request)) and (hit := self.pages.find(*ahead)):
            page, request.chain = hit
            self.pages.share((page,))
            request.pages.append(page)
            request.known += 1
            request.done += PAGE_SIZE
            self.shared += PAGE_SIZE

    def _page_ahead(self, request: Request) -> Key | None:
        """The full page that it would read next, where it has read full pages only and has a token more to read."""
        last = request.done + PAGE_SIZE >= len(request.window)
        if not self.shares or last or len(request.pages) > request.known:
            return None
        return request.chain, tuple(request.window[request.done : request.done + PAGE_SIZE])

    def _release(self, request: Request) -> None:
        if self.copies or self.ring_copies:  # a fork that slides at once: the next one may take its pages
            self.copies = without(self.copies, request.pages)
            self.ring_copies = without(self.ring_copies, request.ring)
        self.room.release(request)
        request.drafts = ()
