"""A runner without tensors that believes nothing: it simulates every slot of every page and checks each span.

Its "model" is a function of all the tokens that are visible and of nothing else, as a Transformer is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpt2.inference.choose import Ask
from gpt2.inference.request import PAGE_SIZE, Span
from gpt2.inference.rings import rings_for
from gpt2.inference.rows import Result, Row, Text
from gpt2.inference.sampling import Choice, SamplingParams
from gpt2.model.config import GPTConfig
from gpt2.tokenizer.bpe import Tokenizer

BYTES = Tokenizer.bytes_only()
EOT = 256
LETTERS = b"abcde"


def digest(before: int, token: int) -> int:
    """What is known of a text after one more token: different for every text."""
    return ((before ^ token) * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % (1 << 61)


def digest_of(window: Sequence[int]) -> int:
    """What is known of a whole window."""
    known = -1
    for token in window:
        known = digest(known, token)
    return known


class Wrong(BaseException):
    """A span that should never have been asked for; no Exception, as an engine takes those for a request's own."""


def must(so: bool) -> None:
    if not so:
        raise Wrong


@dataclass(frozen=True)
class Slot:
    """One token's keys and values: what a page holds of it."""

    position: int
    token: int
    digest: int


def pick(slot: Slot, prompt: Sequence[int], output: Sequence[int], params: SamplingParams, number: float) -> int:
    """The next token: mostly by the last one, so that texts repeat, sometimes by all that is visible."""
    mixed = slot.digest >> 20
    if not params.greedy:
        mixed += int(number * 97)
    if params.presence_penalty:
        mixed += len(set(output)) + sum(prompt)
    if mixed % 101 == 0:
        return EOT
    return LETTERS[(mixed // 101 if mixed % 4 == 0 else 3 * slot.token + 1) % len(LETTERS)]


class FakeRunner:
    """Fails with ValueError on a span with the `poison` token, with Wrong on whatever no runner should be asked.

    With a `band` its second layer is banded: the ring must hold the band before each token that is read.
    """

    def __init__(
        self,
        pages: int,
        context_length: int = 64,
        max_tokens: int = 64,
        max_outputs: int = 32,
        poison: int = -1,
        band: int = 0,
        max_span: int = 0,
    ) -> None:
        pattern = ("dense", "banded") if band else ("dense",)
        self.config = GPTConfig(
            n_layer=2,
            n_head=1,
            n_embd=8,
            vocab_size=257,
            context_length=context_length,
            attention_pattern=pattern,
            band_width=band,
        )
        self.rings = rings_for(self.config, pages, max_tokens, max_span)
        self.ring_slots: list[Slot | None] = [None] * (self.rings.count * PAGE_SIZE)
        self.vocab_size = 257
        self.pages, self.max_tokens, self.max_outputs, self.poison = pages, max_tokens, max_outputs, poison
        self.slots: list[Slot | None] = [None] * (pages * PAGE_SIZE)
        self.rows: list[Slot] = []
        self.steps: list[list[Span]] = []

    def step(self, spans: Sequence[Span]) -> None:
        must(0 < sum(len(span.tokens) for span in spans) <= self.max_tokens)
        must(sum(span.outputs for span in spans) <= self.max_outputs)
        self._check_pages(spans)
        if any(self.poison in span.tokens for span in spans):
            raise ValueError("poisoned")
        self.steps.append(
            [Span(tuple(s.tokens), s.start, tuple(s.pages), s.outputs, s.adapter, tuple(s.ring)) for s in spans]
        )
        before = [self._seen(span) for span in spans]
        self.rows = [slot for span, seen in zip(spans, before, strict=True) for slot in self._read(span, seen)]

    def choose(self, asks: Sequence[Ask]) -> list[Choice]:
        return [self._choose(ask) for ask in asks]

    def logprobs(self, targets: Sequence[int], rows: Sequence[int] | None = None) -> list[float]:
        """Of a target, whatever is known of all that is visible and the target."""
        asked = range(len(self.rows)) if rows is None else rows
        return [
            -float(digest(self.rows[row].digest, target) % 1009) for row, target in zip(asked, targets, strict=True)
        ]

    def copy_pages(self, pairs: Sequence[tuple[int, int]], rings: Sequence[tuple[int, int]] = ()) -> None:
        for copies, slots in ((pairs, self.slots), (rings, self.ring_slots)):
            targets = [target for _, target in copies]
            must(len(set(targets)) == len(targets) and not {source for source, _ in copies} & set(targets))
            for one, other in copies:
                start, end = one * PAGE_SIZE, other * PAGE_SIZE
                slots[end : end + PAGE_SIZE] = slots[start : start + PAGE_SIZE]

    def _check_pages(self, spans: Sequence[Span]) -> None:
        """Enough pages, each once; and none is written on that somebody else looks at."""
        for place, span in enumerate(spans):
            end = span.start + len(span.tokens)
            must(0 <= span.outputs <= len(span.tokens) > 0 and end <= self.config.context_length)
            must(len(span.pages) * PAGE_SIZE >= end and len(set(span.pages)) == len(span.pages))
            written = set(span.pages[span.start // PAGE_SIZE : -(-end // PAGE_SIZE)])
            must(len(span.tokens) <= self.rings.max_span and len(set(span.ring)) == len(span.ring))
            must(self.rings.of(end) <= len(span.ring) <= self.rings.each)
            for other in (*spans[:place], *spans[place + 1 :]):
                must(not written & set(other.pages) and not set(span.ring) & set(other.ring))

    def _seen(self, span: Span) -> int:
        """The digest of what lies before the span; each slot must hold the token that follows the one before."""
        known = -1 - span.adapter
        for place, page in enumerate(span.pages[: -(-span.start // PAGE_SIZE)]):
            first = page * PAGE_SIZE
            for position, slot in enumerate(self.slots[first : first + PAGE_SIZE], place * PAGE_SIZE):
                if position == span.start:
                    break
                known = digest(known, slot.token) if slot else 0
                must(slot is not None and slot.position == position and slot.digest == known)
        return known

    def _read(self, span: Span, known: int) -> list[Slot]:
        fresh = []
        for position, token in enumerate(span.tokens, span.start):
            known = digest(known, token)
            fresh.append(Slot(position, token, known))
            self.slots[self._place(span, position)] = fresh[-1]
            if span.ring:
                self.ring_slots[self._ring_place(span, position)] = fresh[-1]
        for slot in fresh if span.ring else ():  # after all were written, as real runners do it
            for position in range(max(0, slot.position - self.config.band_width + 1), slot.position + 1):
                must(self.ring_slots[self._ring_place(span, position)] == self.slots[self._place(span, position)])
        return fresh[len(fresh) - span.outputs :]

    def _place(self, span: Span, position: int) -> int:
        return span.pages[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE

    def _ring_place(self, span: Span, position: int) -> int:
        return span.ring[position // PAGE_SIZE % self.rings.each] * PAGE_SIZE + position % PAGE_SIZE

    def _choose(self, ask: Ask) -> Choice:
        number = 0.0 if ask.params.greedy else ask.stream.random()
        token = pick(self.rows[ask.row], ask.prompt, ask.output, ask.params, number)
        return Choice(token, -float(token))


def plain(
    config: GPTConfig, prompt: Sequence[int], params: SamplingParams, overflow: str = "slide", place: int = 0
) -> list[Result]:
    """What the plain loop would make of a prompt with this model: one text at a time."""
    text = Text(config, BYTES, prompt, params, overflow, place)
    rows = [Row(text, sample, sample) for sample in range(params.n)]
    for row in rows:
        window = list(text.prompt)
        known = digest_of(window)
        while not row.finish_reason:
            number = 0.0 if params.greedy else row.random.random()
            token = pick(Slot(len(window) - 1, window[-1], known), text.prompt, row.tokens, params, number)
            row.push(Choice(token, -float(token)))
            window.append(token)
            known = digest(known, token)
            if len(window) > config.context_length:
                window = window[-max(1, config.context_length // 2) :]
                known = digest_of(window)
    return [row.result() for row in rows]
