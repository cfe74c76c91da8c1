"""Beam search: the text that the model finds likeliest as a whole, as far as a few paths kept side by side find it.

GPT-3's paper (Brown et al. 2020, section 2.4) uses 4 beams and a length penalty of 0.6 for free-form completion. A
finished text's score is that of transformers: sum of its tokens' log-probabilities / tokens ** length_penalty, its
end-of-text counted. (Wu et al. 2016, whose "alpha = 0.6" the paper names, divide by ((5 + tokens) / 6) ** alpha.)

Beams share the pages of what they have in common; where one goes on in two ways, only a half-filled page is copied.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from gpt2.errors import UserError
from gpt2.inference.choose import Ask
from gpt2.inference.pages import Pages, pages_for
from gpt2.inference.request import PAGE_SIZE, Span
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
    pool = Pages(runner.pages)
    searches = [Search(text, beams, pool) for text in texts]
    for search in searches:
        _check(search, runner, vocab_size)
    _run(runner, pool, searches)
    return [result for search in searches for result in search.results()]


def score(choices: Sequence[Choice], length_penalty: float) -> float:
    """What a finished text is ranked by."""
    return sum(choice.logprob for choice in choices) / len(choices) ** length_penalty


@dataclass(frozen=True)
class Beam:
    """An unfinished text: what was chosen so far, the sum of log-probabilities, and its pages."""

    choices: tuple[Choice, ...]
    total: float
    pages: list[int]


class Search:
    """One prompt's beams and the best of its finished texts."""

    def __init__(self, text: Text, params: BeamParams, pool: Pages) -> None:
        self.text, self.params, self.pool = text, params, pool
        assert text.room is not None
        self.room = min(text.params.max_new_tokens, text.room)  # tokens that a text may get
        self.beams = [Beam((), 0.0, [])]
        self.finished: list[tuple[float, tuple[Choice, ...]]] = []  # best first, at most num_beams
        self.done = False

    @property
    def most_pages(self) -> int:
        """Pages that it can ever hold: the prompt's full ones are shared."""
        shared = len(self.text.prompt) // PAGE_SIZE
        return shared + self.params.num_beams * (pages_for(len(self.text.prompt) + self.room) - shared)

    def prompt_spans(self, most: int) -> list[Span]:
        """The prompt in pieces of at most `most` tokens, one for each step; the last one's logits are wanted."""
        prompt, (beam,) = self.text.prompt, self.beams
        beam.pages.extend(self.pool.take(pages_for(len(prompt))))
        starts = range(0, len(prompt), most)
        last = starts[-1]
        return [Span(prompt[start : start + most], start, beam.pages, int(start == last)) for start in starts]

    def spans(self) -> list[Span]:
        """Each beam's last token, to be read."""
        start = len(self.text.prompt) + len(self.beams[0].choices) - 1
        for beam in self.beams:
            beam.pages.extend(self.pool.take(pages_for(start + 1) - len(beam.pages)))
        return [Span([beam.choices[-1].token], start, beam.pages) for beam in self.beams]

    def grow(self, tops: Sequence[Top]) -> list[tuple[int, int]]:
        """Go on with the best continuations of all beams; the pages that have to be copied (from, to).

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

    def _replace(self, kept: Sequence[tuple[int, Choice]]) -> list[tuple[int, int]]:
        """Put the continuations (beam, token) in the beams' place; the pages that have to be copied."""
        parents = self.beams
        used = len(self.text.prompt) + len(parents[0].choices) if parents else 0  # tokens on each beam's pages
        for parent, _ in kept:
            self.pool.share(parents[parent].pages)
        for beam in parents:
            self.pool.give_back(beam.pages)
        copies: list[tuple[int, int]] = []
        self.beams = []
        written: set[int] = set()  # beams whose half-filled page one continuation writes on already
        for parent, choice in kept:
            beam, pages = parents[parent], list(parents[parent].pages)
            if used % PAGE_SIZE and parent in written:
                copies.append((pages[-1], self._own_last(pages)))
            written.add(parent)
            self.beams.append(Beam((*beam.choices, choice), beam.total + choice.logprob, pages))
        return copies

    def _own_last(self, pages: list[int]) -> int:
        """Put a new page in the place of the last one."""
        self.pool.give_back(pages[-1:])
        pages[-1:] = self.pool.take(1)
        return pages[-1]

    def _result(self, sample: int, choices: Sequence[Choice]) -> Result:
        row = Row(self.text, sample=sample)
        for choice in choices:
            row.push(choice)
        return row.result()


def _run(runner: Runner, pool: Pages, searches: Sequence[Search]) -> None:
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
    for span in search.prompt_spans(runner.max_tokens):
        runner.step([span])
    _grow(runner, [search], [1])


def _grow(runner: Runner, searches: Sequence[Search], counts: Sequence[int]) -> None:
    """Hand each search the likeliest tokens after its beams, `counts` of the step's rows for each search."""
    likeliest = SamplingParams(temperature=0, logprobs=2 * searches[0].params.num_beams)
    unused = random.Random(0)  # the likeliest are not drawn
    tops = deque(
        choice.top for choice in runner.choose([Ask(row, (), (), likeliest, unused) for row in range(sum(counts))])
    )
    copies: list[tuple[int, int]] = []
    for search, count in zip(searches, counts, strict=True):
        copies += search.grow([tops.popleft() for _ in range(count)])
    if copies:
        runner.copy_pages(copies)


def _fits(searches: Sequence[Search], runner: Runner) -> bool:
    rows = sum(search.params.num_beams for search in searches)
    pages = sum(search.most_pages for search in searches)
    return rows <= min(runner.max_outputs, runner.max_tokens) and pages <= runner.pages


def refuse(params: SamplingParams, beams: BeamParams, overflow: Overflow) -> None:
    """UserError for what cannot be combined with beam search."""
    if overflow == "slide":
        raise UserError("--overflow slide: beams cannot slide past the model's context; use stop or error")
    if params.n > beams.num_beams:
        raise UserError(f"n = {params.n}: beam search with {beams.num_beams} beams finds at most so many texts")
    usual = SamplingParams()
    for field in fields(params):
        value = getattr(params, field.name)
        if field.name in USED or value == getattr(usual, field.name) or (field.name == "temperature" and params.greedy):
            continue
        raise UserError(f"{field.name} = {value!r}: beam search draws nothing and changes no logits; leave it out")


def _check(search: Search, runner: Runner, vocab_size: int) -> None:
    """Whether a runner can do this one search."""
    width = search.params.num_beams
    if 2 * width > vocab_size:
        raise UserError(f"num_beams = {width}: at most half the vocabulary of {vocab_size} tokens")
    if not _fits([search], runner):
        raise UserError(
            f"{width} beams of {len(search.text.prompt)} + {search.room} tokens need {search.most_pages} pages and "
            f"{width} rows; there are {runner.pages} and {min(runner.max_outputs, runner.max_tokens)}; take fewer "
            "beams or fewer tokens"
        )
