"""Guesses at what a text goes on with, cheap enough to be wrong.

The model reads a guess of several tokens in one step, nearly as fast as one token, and chooses at each place just as
it would without: what agrees is kept, the first choice that does not agree takes the guess's place. So no text
changes; only its speed does. Prompt lookup (Saxena 2023; LLMA, Yang et al. 2023) guesses that a text goes on as it
did the last time it said these words; a smaller model (Leviathan et al. 2023) that the larger will say the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from gpt2.inference.request import Request, Span
from gpt2.inference.room import Room
from gpt2.inference.sampling import SamplingParams

if TYPE_CHECKING:
    from gpt2.inference.runners.base import Runner

LONGEST = 16  # tokens; checking so many costs two or three times one token where one stream is written
PRICE = 0.1  # of a step, for each token that is checked beside it: 4 tokens 1.1 steps, 8 tokens 1.5, 16 tokens 2.3
HIGHEST_PRICE = 0.5  # where many streams are written a step costs half as much again for as many tokens again
RUNS = ((5, LONGEST), (3, 6), (2, 3))  # so many tokens that stood there before are worth so many guesses
FIRST_PAUSE, LAST_PAUSE = 1, 128  # tokens without guesses after one that was all wrong


class Drafter(Protocol):
    """Whoever guesses. It is told of every request how its guesses fared, and when the request is over."""

    def propose(self, wants: Sequence[tuple[Request, int]]) -> list[Sequence[int]]:
        """For each request what may follow its window, at most so many tokens, maybe none."""
        ...

    def learn(self, request: Request, drafted: int, accepted: int) -> None:
        """So many of the drafted tokens were checked, and so many of these were right."""
        ...

    def forget(self, request: Request) -> None:
        """The request is over."""
        ...


class Gate:
    """How many tokens to guess, by how the last guesses fared: twice as many while all are right.

    A guess that did not pay is followed by a pause, and that by longer ones until a guess pays: text that repeats
    nothing is hardly slowed.
    """

    def __init__(self, length: int = LONGEST // 2) -> None:
        self.length = length
        self._pause, self._left = FIRST_PAUSE, 0

    def open(self) -> bool:
        """Whether to guess before the next token; asked once a token."""
        if self._left:
            self._left -= 1
            return False
        return True

    def learn(self, drafted: int, accepted: int, price: float = PRICE) -> None:
        """`price`: what a guessed token costs, as a share of what a right one saves."""
        if accepted == drafted:
            self.length = min(LONGEST, 2 * self.length)
        else:
            self.length = max(2, min(self.length, 2 * accepted))
        if accepted > price * drafted:
            self._pause = FIRST_PAUSE
        else:
            self._left, self._pause = self._pause, min(LAST_PAUSE, 2 * self._pause)


class Lookup:
    """A text that grows, and where each short run of its tokens last stood; a token costs the same at any length."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.source = 0  # the place after what the text's end repeats; 0: its end is new
        self.matched = 0  # so many tokens at least
        self._last: list[dict[tuple[int, ...], int]] = [{} for _ in RUNS]

    def push(self, tokens: Sequence[int]) -> None:
        """More text."""
        for token in tokens:
            self._push(token)

    def guess(self, most: int) -> list[int]:
        """What followed the last time, at most so many tokens and no more than the match is worth."""
        if not self.source:
            return []
        worth = next((count for size, count in RUNS if self.matched >= size), 0)
        guess: list[int] = []
        for place in range(self.source, self.source + min(most, worth)):
            behind = place - len(self.tokens)  # a text that repeats its own end goes on into the guess
            guess.append(self.tokens[place] if behind < 0 else guess[behind])
        return guess

    def _push(self, token: int) -> None:
        follows = self.source and self.tokens[self.source] == token
        self.tokens.append(token)
        self.source, self.matched = (self.source + 1, self.matched + 1) if follows else (0, 0)
        for (size, _), last in zip(RUNS, self._last, strict=True):
            if len(self.tokens) < size:
                continue
            run = tuple(self.tokens[-size:])
            before = last.get(run, 0)
            last[run] = len(self.tokens)
            if before and self.matched < size:
                self.source, self.matched = before, size


@dataclass
class _Text:
    """One request's lookup and gate, made when it first asks."""

    lookup: Lookup = field(default_factory=Lookup)
    gate: Gate = field(default_factory=Gate)


class PromptLookup:
    """Guesses from the request's own prompt and what it has written."""

    def __init__(self) -> None:
        self._texts: dict[Request, _Text] = {}
        self._streams = 1

    def propose(self, wants: Sequence[tuple[Request, int]]) -> list[Sequence[int]]:
        self._streams = len(wants)
        return [self._propose(request, most) for request, most in wants]

    def learn(self, request: Request, drafted: int, accepted: int) -> None:
        self._texts[request].gate.learn(drafted, accepted, min(HIGHEST_PRICE, PRICE * self._streams))

    def forget(self, request: Request) -> None:
        self._texts.pop(request, None)

    def _propose(self, request: Request, most: int) -> Sequence[int]:
        row = request.rows[0]
        text = self._texts.get(request)
        if text is None:
            text = self._texts[request] = _Text()
            text.lookup.push(row.text.prompt)
        text.lookup.push(row.tokens[len(text.lookup.tokens) - len(row.text.prompt) :])
        if most < 1 or not text.gate.open():
            return ()
        return text.lookup.guess(min(most, text.gate.length))


GREEDY = SamplingParams(temperature=0.0)


@dataclass
class _Reading:
    """What the smaller model has read of one request."""

    start: int = 0
    done: int = 0  # of the window's tokens
    ahead: int = 0  # guesses read behind these
    pages: list[int] = field(default_factory=list)
    ring: list[int] = field(default_factory=list)
    gate: Gate = field(default_factory=lambda: Gate(4))

    def forget(self) -> None:
        """No page is held."""
        self.pages, self.ring = [], []


class SmallerModel:
    """Guesses by a smaller model with the same tokenizer: what it would itself say, greedily.

    It has its own runner and pages. A request that does not fit these, or the smaller model's context, goes without.
    `price`: one of its tokens' time as a share of the larger model's step.
    """

    def __init__(self, runner: Runner, price: float = 0.3) -> None:
        self.runner, self.price = runner, price
        self.room = Room(runner.pages, runner.rings)
        self._readings: dict[Request, _Reading] = {}
        self._stream = random.Random(0)  # greedy choices draw nothing

    def propose(self, wants: Sequence[tuple[Request, int]]) -> list[Sequence[int]]:
        rooms = {request: self._room(request, most) for request, most in wants}
        going = {request: _Draft(self._readings[request], request) for request, room in rooms.items() if room > 0}
        drafts = {request: draft.tokens for request, draft in going.items()}
        while going:
            self._step(list(going.values()))
            going = {request: draft for request, draft in going.items() if len(draft.tokens) < rooms[request]}
        for request, tokens in drafts.items():
            reading = self._readings[request]
            reading.done, reading.ahead = len(request.window), len(tokens) - 1  # the last guess is not read
        return [drafts.get(request, ()) for request, _ in wants]

    def learn(self, request: Request, drafted: int, accepted: int) -> None:
        reading = self._readings[request]
        reading.done += min(accepted, reading.ahead)
        reading.gate.learn(drafted, accepted, self.price)

    def forget(self, request: Request) -> None:
        reading = self._readings.pop(request, None)
        if reading:
            self.room.release(reading)

    def _room(self, request: Request, most: int) -> int:
        """So many tokens can be guessed now; the pages for them are taken."""
        reading = self._readings.setdefault(request, _Reading())
        if reading.start != request.start:  # the window has slid
            reading.start, reading.done = request.start, 0
        reading.done = min(reading.done, len(request.window) - 1)  # the last is read again where nothing was checked
        if most < 1 or not reading.gate.open():
            return 0
        left = self.runner.config.context_length - len(request.window) + 1
        room = min(most, reading.gate.length, left, self.runner.rings.max_span)
        return room if self.room.cover(reading, len(request.window) + room - 1) else 0

    def _step(self, drafts: Sequence[_Draft]) -> None:
        """One more guess for each that has read all there is; the others read on."""
        from gpt2.inference.choose import Ask

        spans: list[Span] = []
        ready: list[_Draft] = []
        budget = self.runner.max_tokens
        for draft in drafts:
            if not budget or len(ready) == self.runner.max_outputs:
                break
            tokens = draft.unread(min(budget, self.runner.rings.max_span))
            budget -= len(tokens)
            place = draft.read
            draft.read += len(tokens)
            last = draft.read == draft.length
            spans.append(Span(tokens, place, draft.reading.pages, int(last), ring=draft.reading.ring))
            if last:
                ready.append(draft)
        self.runner.step(spans)
        asks = [Ask(row, (), (), GREEDY, self._stream) for row in range(len(ready))]
        for draft, choice in zip(ready, self.runner.choose(asks) if asks else (), strict=True):
            draft.tokens.append(choice.token)


class _Draft:
    """One request's guess in the making."""

    def __init__(self, reading: _Reading, request: Request) -> None:
        self.reading, self.window = reading, request.window
        self.tokens: list[int] = []
        self.read = reading.done

    @property
    def length(self) -> int:
        """Tokens to read before the next guess."""
        return len(self.window) + len(self.tokens)

    def unread(self, most: int) -> list[int]:
        """The next tokens to read: of the window, or else the last guess."""
        return self.window[self.read : self.read + most] or self.tokens[-1:]
