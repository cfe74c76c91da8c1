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
from gpt2.model.config import GPTConfig

SHORT = 16  # spans of at most so many tokens attend together with others of their length


class Pool:
    """Room for `pages` pages in every layer, and one more, `scratch`, for what nobody will look at.

    A slot is one token's room: page * PAGE_SIZE + the token's place in it.
    """

    def __init__(self, config: GPTConfig, pages: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.n_layer, (pages + 1) * PAGE_SIZE, config.n_head, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.scratch = pages

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Put k and v (N, H, D) into slots (N)."""
        self.keys[layer].index_copy_(0, slots, k)
        self.values[layer].index_copy_(0, slots, v)

    def attend(self, layer: int, q: Tensor, seen: Tensor | slice, mask: Tensor | None) -> Tensor:
        """q (n, H, T, D) over the slots `seen` (n, S), or a slice of S of them for n = 1; mask (n, 1, T, S)."""
        shape = (q.size(0), -1, q.size(1), q.size(3))
        keys = self.keys[layer][seen].view(shape).transpose(1, 2)  # (n, H, S, D)
        values = self.values[layer][seen].view(shape).transpose(1, 2)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy pages (from, to), all at once."""
        sources, targets = (torch.tensor(pages, device=self.keys.device) for pages in zip(*pairs, strict=True))
        for memory in (self.keys, self.values):
            paged = memory.view(memory.size(0), -1, PAGE_SIZE, *memory.shape[2:])
            paged[:, targets] = paged[:, sources]


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
    the spans' order. The keys and values of the new tokens go into the spans' pages.
    """

    def __init__(self, pool: Pool, spans: Sequence[Span]) -> None:
        self.pool, self.device = pool, pool.keys.device
        self.groups: list[Group] = []
        order: list[Span] = []
        firsts: dict[int, int] = {}  # index of a span -> place of its first token
        place = 0
        for indices in together(spans):
            members = [spans[index] for index in indices]
            self.groups.append(self._group(place, members))
            for index in indices:
                firsts[index] = place
                place += len(spans[index].tokens)
            order += members
        self.input_ids = self._tensor([token for span in order for token in span.tokens])[None]  # (1, N)
        self.positions = self._tensor([position for span in order for position in positions_of(span)])  # (N)
        self.slots = self._tensor([slot for span in order for slot in slots_of(span)[span.start :]])  # (N)
        ends = [firsts[index] + len(span.tokens) for index, span in enumerate(spans)]
        self.outputs = self._tensor(
            [end - back for end, span in zip(ends, spans, strict=True) for back in range(span.outputs, 0, -1)]
        )

    def begin(self, input_ids: Tensor, config: GPTConfig) -> Tensor:
        return self.positions

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        self.pool.write(layer, self.slots, k[0].transpose(0, 1), v[0].transpose(0, 1))
        parts = []
        for group in self.groups:
            tokens = slice(group.first, group.first + group.count * group.length)
            if group.seen is None:
                parts.append(whole(q[:, :, tokens], k[:, :, tokens], v[:, :, tokens]))
                continue
            mine = q[0, :, tokens].view(q.size(1), group.count, group.length, -1).transpose(0, 1)  # (n, H, T, D)
            y = self.pool.attend(layer, mine, group.seen, group.mask)
            parts.append(y.transpose(0, 1).flatten(1, 2)[None])  # (1, H, n T, D)
        return torch.cat(parts, dim=2)  # (1, H, N, D)

    def finish(self) -> None:
        pass

    def _group(self, first: int, spans: Sequence[Span]) -> Group:
        length = len(spans[0].tokens)
        if spans[0].start == 0 and length > 1:
            return Group(first, 1, length)
        ends = [span.start + length for span in spans]
        if len(spans) == 1 and (slots := consecutive(spans[0], ends[0])):
            seen: Tensor | slice = slots
        else:
            # What is past a text's own end is masked; its first slot stands there, and no other text's numbers.
            rows = [slots_of(span) for span in spans]
            seen = self._tensor([row + row[:1] * (max(ends) - len(row)) for row in rows])
        last = self._tensor([list(positions_of(span)) for span in spans])  # (n, T) the last token that each one sees
        visible = torch.arange(max(ends), device=self.device) <= last[:, :, None]
        return Group(first, len(spans), length, seen, None if len(spans) == length == 1 else visible[:, None])

    def _tensor(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, device=self.device, dtype=torch.long)


def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A text from its start: q, k, v (1, H, T, D) -> (1, H, T, D)."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


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


def slots_of(span: Span) -> list[int]:
    """The slots of all the span's tokens, those read before included."""
    end = span.start + len(span.tokens)
    return [page * PAGE_SIZE + offset for page in span.pages for offset in range(PAGE_SIZE)][:end]


def consecutive(span: Span, end: int) -> slice | None:
    """The first `end` slots as one stretch of memory, if the pages lie so: it is then read where it is."""
    first = span.pages[0]
    used = range(first, first + -(-end // PAGE_SIZE))
    if list(span.pages[: len(used)]) != list(used):
        return None
    return slice(first * PAGE_SIZE, first * PAGE_SIZE + end)
