"""Beam search: the text that the model finds likeliest as a whole, as far as a few paths kept side by side find it.

GPT-3's paper (Brown et al. 2020, section 2.4) uses 4 beams and a length penalty of 0.6 for free-form completion. A
finished text's score is that of transformers: sum of its tokens' log-probabilities / tokens ** length_penalty, its
end-of-text counted. (Wu et al. 2016, whose "alpha = 0.6" the paper names, divide by ((5 + tokens) / 6) ** alpha.)

Beams share the pages of what they have in common; where one goes on in two ways, only a half-filled page is copied,
and, where layers are banded, the ring of their keys.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from gpt2.errors import UserError
from gpt2.inference.choose import Ask
from gpt2.inference.request import PAGE_SIZE, Span
from gpt2.inference.room import Need, Room
from gpt2.inference.rows import Overflow, Prompt, Result, Row, Text
from gpt2.inference.sampling import Choice, SamplingParams

if TYPE_CHECKING:
    from gpt2.inference.runners.base import Runner
    from gpt2.tokenizer.bpe import Tokenizer

Top = tuple[tuple[int, float], ...]  # the likeliest tokens after a beam and their log-probabilities
USED = ("max_new_tokens", "ignore_eot", "n")  # what beam search takes from SamplingParams


@dataclass(frozen=True)
class BeamParams:
    """How wide, and when to stop.

    A prompt is done when `num_beams` texts are finished and, unless `early_stopping`, the best unfinished one, scored
    as if it ended where it is, is no better than the worst of them (transformers' early_stopping=False).
    A `length_penalty` above 0 favours long texts, below 0 short ones.
    """

    num_beams: int = 4
    length_penalty: float = 0.6
    early_stopping: bool = False

    def __post_init__(self) -> None:
        if self.num_beams < 2:
            raise UserError(f"num_beams = {self.num_beams}: must be at least 2; for one, take temperature 0 instead")


def beam_search(
    runner: Runner,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    params: SamplingParams | None = None,
    beams: BeamParams | None = None,
    overflow: Overflow = "stop",
) -> list[Result]:
    """The `params.n` best texts that each beam search finds, best first; the results of the first prompt come first.

    Of `params` only max_new_tokens, ignore_eot and n mean anything here: UserError for others that are set, as for
    overflow "slide", more texts than beams, and a runner too small. The runner's pages are used from the first on:
    nobody else may have texts on them.
    """
    params, beams = params or SamplingParams(), beams or BeamParams()
    refuse(params, beams, overflow)
    texts = [Text(runner.config, tokenizer, prompt, params, overflow, index) for index, prompt in enumerate(prompts)]
    vocab_size = min(runner.config.vocab_size, tokenizer.vocab_size)
    room = Room(runner.pages, runner.rings)
    searches = [Search(text, beams, room) for text in texts]
    for search in searches:
        _check(search, runner, vocab_size)
    _run(runner, searches)
    return [result for search in searches for result in search.results()]


def score(choices: Sequence[Choice], length_penalty: float) -> float:
    """What a finished text is ranked by."""
    return sum(choice.logprob for choice in choices) / len(choices) ** length_penalty


@dataclass(eq=False)
class Beam:
    """An unfinished text: what was chosen so far, the sum of log-probabilities, and its pages."""

    choices: tuple[Choice, ...]
    total: float
    pages: list[int] = field(default_factory=list)
    ring: list[int] = field(default_factory=list)

    def forget(self) -> None:
        """It holds no pages any more."""
        self.pages, self.ring = [], []


@dataclass
class Copies:
    """Pages, and pages of rings, to copy (from, to)."""

    pages: list[tuple[int, int]] = field(default_factory=list)
    rings: list[tuple[int, int]] = field(default_factory=list)


class Search:
    """One prompt's beams and the best of its finished texts."""

    def __init__(self, text: Text, params: BeamParams, pools: Room) -> None:
        self.text, self.params, self.pools = text, params, pools
        assert text.room is not None
        self.room = min(text.params.max_new_tokens, text.room)  # tokens that a text may get
        self.beams = [Beam((), 0.0)]
        self.finished: list[tuple[float, tuple[Choice, ...]]] = []  # best first, at most num_beams
        self.done = False

    @property
    def most_pages(self) -> Need:
        """What it can ever hold: the prompt's full pages are shared, a ring is each beam's own."""
        prompt, width = len(self.text.prompt), self.params.num_beams
        shared = prompt // PAGE_SIZE
        pages, ring = self.pools.short(Beam((), 0.0), prompt + self.room)
        return shared + width * (pages - shared), width * ring

    def prompt_spans(self, most: int) -> list[Span]:
        """The prompt in pieces of at most `most` tokens, one for each step; the last one's logits are wanted."""
        prompt, (beam,) = self.text.prompt, self.beams
        self._cover(beam, len(prompt))
        starts = range(0, len(prompt), most)
        last = starts[-1]
        return [
            Span(prompt[start : start + most], start, beam.pages, int(start == last), ring=beam.ring)
            for start in starts
        ]

    def spans(self) -> list[Span]:
        """Each beam's last token, to be read."""
        start = len(self.text.prompt) + len(self.beams[0].choices) - 1
        for beam in self.beams:
            self._cover(beam, start + 1)
        return [Span([beam.choices[-1].token], start, beam.pages, ring=beam.ring) for beam in self.beams]

    def grow(self, tops: Sequence[Top]) -> Copies:
        """Go on with the best continuations of all beams; the pages that have to be copied.

        `tops`: the 2 num_beams likeliest tokens after each beam. At most num_beams of all continuations end the text,
        so as many are left to go on with. One that ends it counts if it is among the num_beams best.
        """
        width, eot_id = self.params.num_beams, None if self.text.params.ignore_eot else self.text.tokenizer.eot_id
        going_on: list[tuple[int, Choice]] = []
        length = len(self.beams[0].choices) + 1
        for rank, (parent, choice) in enumerate(self._best(tops)):
            if choice.token != eot_id and length < self.room:
                going_on.append((parent, choice))
            elif rank < width:
                self._finish((*self.beams[parent].choices, choice))
        copies = self._replace(going_on[:width])
        self.done = not self.beams or self._hopeless(length)
        if self.done:
            copies = self._replace([])
        return copies

    def results(self) -> list[Result]:
        """The best finished texts."""
        return [
            self._result(sample, choices) for sample, (_, choices) in enumerate(self.finished[: self.text.params.n])
        ]

    def _best(self, tops: Sequence[Top]) -> list[tuple[int, Choice]]:
        """The 2 num_beams best continuations, best first: which beam, and the token."""
        found = [
            (beam.total + logprob, parent, Choice(token, logprob))
            for parent, (beam, top) in enumerate(zip(self.beams, tops, strict=True))
            for token, logprob in top
        ]
        found.sort(key=lambda one: -one[0])
        return [(parent, choice) for _, parent, choice in found[: 2 * self.params.num_beams]]

    def _finish(self, choices: tuple[Choice, ...]) -> None:
        self.finished.append((score(choices, self.params.length_penalty), choices))
        self.finished.sort(key=lambda one: -one[0])
        del self.finished[self.params.num_beams :]

    def _hopeless(self, length: int) -> bool:
        """Whether enough texts are finished and no unfinished one looks better."""
        if len(self.finished) < self.params.num_beams:
            return False
        best = self.beams[0].total / length**self.params.length_penalty
        return self.params.early_stopping or best <= self.finished[-1][0]

    def _cover(self, beam: Beam, tokens: int) -> None:
        if not self.pools.cover(beam, tokens):
            raise RuntimeError("pages have run out that were counted before")

    def _replace(self, kept: Sequence[tuple[int, Choice]]) -> Copies:
        """Put the continuations (beam, token) in the beams' place; the pages that have to be copied."""
        parents, pages = self.beams, self.pools.pages
        used = len(self.text.prompt) + len(parents[0].choices) if parents else 0  # tokens on each beam's pages
        for parent, _ in kept:
            pages.share(parents[parent].pages)
        going_on = {parent for parent, _ in kept}
        for place, beam in enumerate(parents):
            pages.give_back(beam.pages)
            if place not in going_on:
                self.pools.rings.give_back(beam.ring)
        copies = Copies()
        self.beams = []
        written: set[int] = set()  # beams on whose half-filled page and ring one continuation writes already
        for parent, choice in kept:
            beam = parents[parent]
            mine = Beam((*beam.choices, choice), beam.total + choice.logprob, list(beam.pages), beam.ring)
            if parent in written:
                self._part(mine, bool(used % PAGE_SIZE), copies)
            written.add(parent)
            self.beams.append(mine)
        return copies

    def _part(self, beam: Beam, half_filled: bool, copies: Copies) -> None:
        """Give a beam that goes on beside another a last page and a ring of its own."""
        pages, rings = self.pools.pages, self.pools.rings
        if half_filled:
            last = beam.pages.pop()
            pages.give_back([last])
            beam.pages += pages.take(1)
            copies.pages.append((last, beam.pages[-1]))
        ring, beam.ring = beam.ring, rings.take(len(beam.ring))
        copies.rings += zip(ring, beam.ring, strict=True)

    def _result(self, sample: int, choices: Sequence[Choice]) -> Result:
        row = Row(self.text, sample=sample)
        for choice in choices:
            row.push(choice)
        return row.result()


def _run(runner: Runner, searches: Sequence[Search]) -> None:
    """All searches to their ends, as many at a time as the runner has room for."""
    waiting, live = deque(searches), list[Search]()
    while waiting or live:
        while waiting and _fits([*live, waiting[0]], runner):
            live.append(waiting.popleft())
            _read_prompt(runner, live[-1])
        live = [search for search in live if not search.done]
        if live:
            spans = [search.spans() for search in live]
            runner.step([span for group in spans for span in group])
            _grow(runner, live, [len(group) for group in spans])


def _read_prompt(runner: Runner, search: Search) -> None:
    for span in search.prompt_spans(min(runner.max_tokens, runner.rings.max_span)):
        runner.step([span])
    _grow(runner, [search], [1])


def _grow(runner: Runner, searches: Sequence[Search], counts: Sequence[int]) -> None:
    """Hand each search the likeliest tokens after its beams, `counts` of the step's rows for each search."""
    likeliest = SamplingParams(temperature=0, logprobs=2 * searches[0].params.num_beams)
    unused = random.Random(0)  # the likeliest are not drawn
    tops = deque(
        choice.top for choice in runner.choose([Ask(row, (), (), likeliest, unused) for row in range(sum(counts))])
    )
    copies = Copies()
    for search, count in zip(searches, counts, strict=True):
        found = search.grow([tops.popleft() for _ in range(count)])
        copies.pages += found.pages
        copies.rings += found.rings
    if copies.pages or copies.rings:
        runner.copy_pages(copies.pages, copies.rings)


def _fits(searches: Sequence[Search], runner: Runner) -> bool:
    rows = sum(search.params.num_beams for search in searches)
    pages, rings = (sum(needs) for needs in zip(*(search.most_pages for search in searches), strict=True))
    fitting = pages <= runner.pages and rings <= runner.rings.count
    return rows <= min(runner.max_outputs, runner.max_tokens) and fitting


def refuse(params: SamplingParams, beams: BeamParams, overflow: Overflow) -> None:
    """UserError for what cannot be combined with beam search."""
    if overflow == "slide":
        raise UserError("--overflow slide: beams cannot slide past the model's context; use stop or error")
    if params.n > beams.num_beams:
        raise UserError(f"n = {params.n}: beam search with {beams.num_beams} beams finds at most so many texts")
    usual = SamplingParams()
    for each in fields(params):
        value = getattr(params, each.name)
        if each.name in USED or value == getattr(usual, each.name) or (each.name == "temperature" and params.greedy):
            continue
        raise UserError(f"{each.name} = {value!r}: beam search draws nothing and changes no logits; leave it out")


def _check(search: Search, runner: Runner, vocab_size: int) -> None:
    """Whether a runner can do this one search."""
    width = search.params.num_beams
    if 2 * width > vocab_size:
        raise UserError(f"num_beams = {width}: at most half the vocabulary of {vocab_size} tokens")
    if not _fits([search], runner):
        pages, rings = search.most_pages
        raise UserError(
            f"{width} beams of {len(search.text.prompt)} + {search.room} tokens need {pages} pages, {rings} of rings, "
            f"and {width} rows; there are {runner.pages}, {runner.rings.count} and "
            f"{min(runner.max_outputs, runner.max_tokens)}; take fewer beams or fewer tokens"
        )
