"""Keys and values in pages, and the context that reads many texts in one pass over them.

N new tokens of all texts  n texts  T new tokens of each  S tokens seen  H heads  D head_dim
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2.inference.request import PAGE_SIZE, Span
from gpt2.inference.rings import Rings
from gpt2.kernels.patterns import visible
from gpt2.model.config import GPTConfig

SHORT = 16  # spans of at most so many tokens attend together with others of their length
Kind = tuple[int, int]  # of a layer: window and stride, see kernels/patterns.py


class Part:
    """Room for `pages` pages in some of the layers, and one more, `scratch`, for what nobody will look at.

    A slot is one token's room: page * PAGE_SIZE + the token's place in it.
    """

    def __init__(self, config: GPTConfig, layers: int, pages: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (layers, (pages + 1) * PAGE_SIZE, config.n_head, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.scratch = pages

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy pages (from, to), all at once."""
        if not pairs:
            return
        sources, targets = (torch.tensor(pages, device=self.keys.device) for pages in zip(*pairs, strict=True))
        for memory in (self.keys, self.values):
            paged = memory.view(memory.size(0), self.scratch + 1, PAGE_SIZE, *memory.shape[2:])
            paged[:, targets] = paged[:, sources]


class Pool:
    """All layers' keys and values: `full` of those that may look back on everything, `rings` of banded ones."""

    def __init__(self, config: GPTConfig, pages: int, rings: Rings, dtype: torch.dtype, device: torch.device) -> None:
        self.kinds = [(config.window(layer), config.stride(layer)) for layer in range(config.n_layer)]
        banded = [bool(window) for window, _ in self.kinds]
        self.full = Part(config, banded.count(False), pages, dtype, device)
        self.rings = Part(config, banded.count(True), rings.count, dtype, device)
        self.ring = rings.each
        parts, before = (self.full, self.rings), [0, 0]
        self.layers: list[tuple[Tensor, Tensor]] = []  # each one's keys and values (slots, H, D)
        for is_banded in banded:
            part, place = parts[is_banded], before[is_banded]
            self.layers.append((part.keys[place], part.values[place]))
            before[is_banded] += 1
        self.device = device

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Put k and v (N, H, D) into slots (N)."""
        keys, values = self.layers[layer]
        keys.index_copy_(0, slots, k)
        values.index_copy_(0, slots, v)

    def attend(self, layer: int, q: Tensor, seen: Tensor | slice, mask: Tensor | None) -> Tensor:
        """q (n, H, T, D) over the slots `seen` (n, S), or a slice of S of them for n = 1; mask (n, 1, T, S)."""
        shape = (q.size(0), -1, q.size(1), q.size(3))
        keys, values = (memory[seen].view(shape).transpose(1, 2) for memory in self.layers[layer])  # (n, H, S, D)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)

    def slots(self, span: Span, window: int) -> list[int]:
        """The slots of the span's tokens up to its last, those read before included: from the first that is seen on."""
        end = span.start + len(span.tokens)
        if not window:
            return [page * PAGE_SIZE + offset for page in span.pages for offset in range(PAGE_SIZE)][:end]
        ring = [page * PAGE_SIZE for page in span.ring]
        places = range(first_seen(span, window), end)
        return [ring[place // PAGE_SIZE % self.ring] + place % PAGE_SIZE for place in places]


@dataclass(frozen=True)
class Group:
    """Spans that attend together: tokens `first` to `first + count * length` of the pass, `length` for each span.

    `seen` None: a text from its start, which needs no look at the pages.
    """

    first: int
    count: int
    length: int
    seen: Tensor | slice | None = None  # slots (n, S)
    mask: Tensor | None = None  # (n, 1, T, S)


class Flat:
    """The context of one pass over all spans' tokens as one row (1, N), in an order of its own.

    `outputs` (number of wanted logits) are the places in that row of the tokens after which logits are wanted, in
    the spans' order; `order` are the spans in the row's. The keys and values of the new tokens go into their pages.
    """

    def __init__(self, pool: Pool, spans: Sequence[Span]) -> None:
        self.pool, self.device = pool, pool.device
        order: list[Span] = []
        parts: list[tuple[int, list[Span]]] = []  # the place of a group's first token, its spans
        firsts: dict[int, int] = {}  # index of a span -> place of its first token
        place = 0
        for indices in together(spans):
            parts.append((place, [spans[index] for index in indices]))
            for index in indices:
                firsts[index] = place
                place += len(spans[index].tokens)
            order += parts[-1][1]
        self.order = order
        self.input_ids = self._tensor([token for span in order for token in span.tokens])[None]  # (1, N)
        self.positions = self._tensor([position for span in order for position in positions_of(span)])  # (N)
        kinds = set(pool.kinds)
        self.groups = {each: [self._group(*part, *each) for part in parts] for each in kinds}
        self.slots = {window: self._written(order, window) for window, _ in kinds}
        ends = [firsts[index] + len(span.tokens) for index, span in enumerate(spans)]
        self.outputs = self._tensor(
            [end - back for end, span in zip(ends, spans, strict=True) for back in range(span.outputs, 0, -1)]
        )

    def begin(self, input_ids: Tensor, config: GPTConfig) -> Tensor:
        return self.positions

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        kind = self.pool.kinds[layer]
        self.pool.write(layer, self.slots[kind[0]], k[0].transpose(0, 1), v[0].transpose(0, 1))
        parts = []
        for group in self.groups[kind]:
            tokens = slice(group.first, group.first + group.count * group.length)
            if group.seen is None:
                parts.append(whole(q[:, :, tokens], k[:, :, tokens], v[:, :, tokens], group.mask))
                continue
            mine = q[0, :, tokens].view(q.size(1), group.count, group.length, -1).transpose(0, 1)  # (n, H, T, D)
            y = self.pool.attend(layer, mine, group.seen, group.mask)
            parts.append(y.transpose(0, 1).flatten(1, 2)[None])  # (1, H, n T, D)
        return torch.cat(parts, dim=2)  # (1, H, N, D)

    def finish(self) -> None:
        pass

    def _group(self, first: int, spans: Sequence[Span], window: int, stride: int) -> Group:
        length, sparse = len(spans[0].tokens), bool(window) or stride > 1
        if spans[0].start == 0 and length > 1:
            return Group(first, 1, length, mask=self._mask(spans, length, window, stride) if sparse else None)
        if len(spans) == 1 and not window and (slots := consecutive(spans[0], spans[0].start + length)):
            seen: Tensor | slice = slots
            size = slots.stop - slots.start
        else:
            # What is past a text's own end is masked; its first slot stands there, and no other text's numbers.
            rows = [self.pool.slots(span, window) for span in spans]
            size = max(map(len, rows))
            seen = self._tensor([row + row[:1] * (size - len(row)) for row in rows])
        everything = len(spans) == length == stride == 1
        return Group(first, len(spans), length, seen, None if everything else self._mask(spans, size, window, stride))

    def _mask(self, spans: Sequence[Span], size: int, window: int, stride: int) -> Tensor:
        """Who sees which of `size` tokens from the first on that is seen at all (n, 1, T, S)."""
        own = self._tensor([list(positions_of(span)) for span in spans])  # (n, T)
        places = torch.arange(size, device=self.device)
        if window:
            places = places + self._tensor([first_seen(span, window) for span in spans])[:, None]  # (n, S)
        return visible(own, places, window, stride)[:, None]

    def _written(self, spans: Sequence[Span], window: int) -> Tensor:
        """The slots of the new tokens (N)."""
        return self._tensor([slot for span in spans for slot in self.pool.slots(span, window)[-len(span.tokens) :]])

    def _tensor(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, device=self.device, dtype=torch.long)


def whole(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """A text from its start: q, k, v (1, H, T, D) -> (1, H, T, D)."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)


def together(spans: Sequence[Span]) -> list[list[int]]:
    """Indices of the spans that attend together: short ones by their length, whole and long ones alone."""
    short: dict[int, list[int]] = {}
    alone: list[list[int]] = []
    for index, span in enumerate(spans):
        length = len(span.tokens)
        if length > SHORT or (span.start == 0 and length > 1):
            alone.append([index])
        else:
            short.setdefault(length, []).append(index)
    return [*short.values(), *alone]


def positions_of(span: Span) -> range:
    """Where the new tokens stand."""
    return range(span.start, span.start + len(span.tokens))


def first_seen(span: Span, window: int) -> int:
    """The first position that any of the new tokens sees."""
    return max(0, span.start - window + 1) if window else 0


def consecutive(span: Span, end: int) -> slice | None:
    """The first `end` slots as one stretch of memory, if the pages lie so: it is then read where it is."""
    first = span.pages[0]
    used = range(first, first + -(-end // PAGE_SIZE))
    if list(span.pages[: len(used)]) != list(used):
        return None
    return slice(first * PAGE_SIZE, first * PAGE_SIZE + end)
