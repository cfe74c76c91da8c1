"""Decode steps of fixed shapes, which CUDA can record once and replay without Python.

A step of n texts is padded to the next of SIZES rows and its longest text to a power of two, so that few shapes are
met; each is recorded when it is first met. What is padded reads and writes the pool's scratch pages. Banded layers
read all of a ring, in whatever order its pages hold it.

    B rows  S tokens seen  C n_embd
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gpt2.inference.request import PAGE_SIZE, Span
from gpt2.inference.runners.paged import Kind, Pool
from gpt2.kernels.patterns import visible
from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT

SIZES = (1, 2, 4, 8, 16, 32, 64)
FEWEST_SEEN = 128


class View(NamedTuple):
    """Where the rows' tokens are put in layers of one kind, and what they see there."""

    own: Tensor  # slots (B)
    seen: Tensor  # slots (B, S)
    mask: Tensor  # (B, 1, 1, S)


class Decode:
    """One new token for each of `batch` rows that see up to `seen` tokens; all that changes lies in tensors.

    It is also the context of its own pass, and runs on any device.
    """

    def __init__(self, module: GPT, pool: Pool, batch: int, seen: int) -> None:
        self.module, self.pool = module, pool
        device = pool.device
        self.tokens = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self.positions = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self.table = torch.full((batch, -(-seen // PAGE_SIZE)), pool.full.scratch, device=device)
        self.ring = torch.full((batch, pool.ring), pool.rings.scratch, device=device)
        self._places = torch.arange(max(self.table.size(1), pool.ring) * PAGE_SIZE, device=device)
        self._views: dict[Kind, View] = {}

    def fill(self, spans: Sequence[Span]) -> None:
        """Take these texts, at most `batch`, into the first rows; the others go to the scratch page."""
        rest = len(self.tokens) - len(spans)
        self.tokens.copy_(torch.tensor([[span.tokens[0]] for span in spans] + [[0]] * rest))
        self.positions.copy_(torch.tensor([[span.start] for span in spans] + [[0]] * rest))
        fill(self.table, [span.pages for span in spans], self.pool.full.scratch)
        if self.pool.ring:
            fill(self.ring, [span.ring for span in spans], self.pool.rings.scratch)

    def run(self) -> Tensor:
        """The hidden states (B, C) after the rows' tokens."""
        return self.module.body(self.tokens, self)[:, 0]

    def begin(self, input_ids: Tensor, config: GPTConfig) -> Tensor:
        self._views = {kind: self._view(*kind) for kind in dict.fromkeys(self.pool.kinds)}
        return self.positions

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        view = self._views[self.pool.kinds[layer]]
        self.pool.write(layer, view.own, k[:, :, 0], v[:, :, 0])
        return self.pool.attend(layer, q, view.seen, view.mask)

    def _view(self, window: int, stride: int) -> View:
        table = self.ring if window else self.table
        slots = (table[:, :, None] * PAGE_SIZE + self._places[:PAGE_SIZE]).flatten(1)  # (B, S)
        count, now = slots.size(1), self.positions
        places = self._places[:count]
        own = slots.gather(1, now % count if window else now)  # (B, 1)
        if window:  # what was last written to each place of a ring, if anything was
            places = now - (now - places) % count  # (B, S)
        mask = visible(now, places, window, stride)  # (B, 1, S)
        if window:
            mask &= places[:, None] >= 0
        seen = torch.where(mask[:, 0], slots, own)  # nobody looks into another text's pages
        return View(own[:, 0], seen, mask[:, None])

    def finish(self) -> None:
        pass


def fill(table: Tensor, rows: Sequence[Sequence[int]], scratch: int) -> None:
    """Put the rows' pages into a table (B, P), as many as fit; what is left shows the scratch page."""
    batch, width = table.shape
    pages = [[*row[:width], *[scratch] * (width - len(row))] for row in rows]
    table.copy_(torch.tensor(pages + [[scratch] * width] * (batch - len(rows))))


class Graphs:
    """The recorded decode steps of one model on a CUDA device."""

    def __init__(self, module: GPT, pool: Pool) -> None:
        self.module, self.pool = module, pool
        self._recorded: dict[tuple[int, int], tuple[Decode, Callable[[], Tensor]]] = {}

    def take(self, spans: Sequence[Span]) -> bool:
        """Whether a recorded step can read these: one token each, its logits wanted, not too many."""
        fitting = all(len(span.tokens) == span.outputs == 1 for span in spans)
        return fitting and len(spans) <= SIZES[-1]

    def read(self, spans: Sequence[Span]) -> Tensor:
        """The hidden states (n, C) after the spans' tokens; the next call may overwrite them."""
        shape = shape_of(spans, self.module.config.context_length)
        if shape not in self._recorded:
            decode = Decode(self.module, self.pool, *shape)
            self._recorded[shape] = decode, record(decode)
        decode, replay = self._recorded[shape]
        decode.fill(spans)
        return replay()[: len(spans)]


def record(decode: Decode) -> Callable[[], Tensor]:
    """`decode.run` as a CUDA graph: it runs once on a stream of its own, in which libraries set themselves up."""
    with torch.cuda.device(decode.tokens.device):
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            decode.run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            hidden = decode.run()

    def replay() -> Tensor:
        graph.replay()
        return hidden

    return replay


def shape_of(spans: Sequence[Span], context_length: int) -> tuple[int, int]:
    """Rows and tokens seen of the fixed step that these fit into."""
    batch = next(size for size in SIZES if size >= len(spans))
    longest, seen = max(span.start for span in spans) + 1, FEWEST_SEEN
    while seen < longest:
        seen *= 2
    return batch, min(seen, context_length)
