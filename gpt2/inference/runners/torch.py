"""The runner that goes through the model's own lines: any device and dtype that torch has, any architecture.

R rows of logits  C n_embd  V vocabulary
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gpt2.errors import UserError
from gpt2.inference.choose import Ask, choose_rows
from gpt2.inference.request import PAGE_SIZE, Span
from gpt2.inference.rings import rings_for
from gpt2.inference.runners.beside import Beside
from gpt2.inference.runners.graphs import Graphs
from gpt2.inference.runners.paged import Flat, Pool
from gpt2.inference.sampling import Choice, SamplingParams, choose
from gpt2.model.gpt import GPT
from gpt2.model.masks import check_room

if TYPE_CHECKING:
    from gpt2.checkpoint.adapters import Adapter


_locks: WeakKeyDictionary[GPT, threading.Lock] = WeakKeyDictionary()
_making = threading.Lock()


def lock_of(module: GPT) -> threading.Lock:
    """One for all runners of a module: while one adds its adapters to the matrices, no other goes through them."""
    with _making:
        return _locks.setdefault(module, threading.Lock())


class TorchRunner:
    """A model with `pages` pages of keys and values of its dtype on its device; see runners.base.Runner.

    `max_span`: new tokens of one text in a step, where layers are banded (0: see rings.py).
    `vocab_size`: tokens are chosen from the first so many (a tokenizer may know fewer than the model); 0 all.
    `logits` (R, V), float32, are those of the last step.
    `graphs`: on CUDA, steps of one token a text are replayed from graphs, see runners.graphs; those with an adapter
    are not. `adapters` are numbered from 1 on.
    """

    def __init__(
        self,
        module: GPT,
        pages: int,
        max_tokens: int = 2048,
        max_outputs: int = 256,
        vocab_size: int = 0,
        graphs: bool = True,
        max_span: int = 0,
        adapters: Sequence[Adapter] = (),
    ) -> None:
        self.module, self.config = module, module.config
        self.adapters, self._beside = len(adapters), Beside(module, adapters)
        self.pages, self.max_tokens, self.max_outputs = pages, max_tokens, max_outputs
        self.vocab_size = min(vocab_size or module.config.vocab_size, module.config.vocab_size)
        weight = module.wte.weight
        self.rings = rings_for(module.config, pages, max_tokens, max_span)
        self.pool = Pool(module.config, pages, self.rings, weight.dtype, weight.device)
        self._graphs = Graphs(module, self.pool) if graphs and weight.device.type == "cuda" else None
        self.logits = torch.empty(0, self.vocab_size)

    @torch.inference_mode()
    def step(self, spans: Sequence[Span]) -> None:
        """Read the spans' tokens; afterwards there is a row of logits (float32) for each wanted output, in order.

        Raises UserError past the context and for unknown adapters, ValueError for more than the runner's limits.
        """
        self._check(spans)
        with lock_of(self.module):
            was_training = self.module.training
            if was_training:
                self.module.eval()
            try:
                self.logits = self.module.head(self._read(spans))[:, : self.vocab_size].float()  # (R, V)
            finally:
                if was_training:
                    self.module.train()

    @torch.inference_mode()
    def choose(self, asks: Sequence[Ask]) -> list[Choice]:
        """A token for each row that is asked about; on a GPU the logits stay there."""
        if self.logits.device.type == "cpu":
            return choose_rows(self.logits.numpy(), asks, self.vocab_size)
        return choose_on_device(self.logits, asks)

    @torch.inference_mode()
    def logprobs(self, targets: Sequence[int], rows: Sequence[int] | None = None) -> list[float]:
        """The log-probability (nats) of one token for each row of logits, in order, or for each of `rows`."""
        rows = range(len(self.logits)) if rows is None else rows
        if len(rows) != len(targets):
            raise ValueError(f"{len(targets)} targets for {len(rows)} rows of logits")
        at, index = (
            torch.tensor(list(numbers), device=self.logits.device, dtype=torch.long) for numbers in (rows, targets)
        )
        own: list[float] = (self.logits[at, index] - self.logits.logsumexp(-1)[at]).tolist()
        return own

    @torch.inference_mode()
    def copy_pages(self, pairs: Sequence[tuple[int, int]], rings: Sequence[tuple[int, int]] = ()) -> None:
        """Copy pages (from, to), and pages of rings, all at once."""
        self.pool.full.copy(pairs)
        self.pool.rings.copy(rings)

    def _read(self, spans: Sequence[Span]) -> Tensor:
        """The hidden states (R, C) of the wanted outputs."""
        adapted = any(span.adapter for span in spans)
        if self._graphs is not None and not adapted and self._graphs.take(spans):
            return self._graphs.read(spans)
        context = Flat(self.pool, spans)
        with self._beside.reading(context.order) if adapted else nullcontext():
            hidden = self.module.body(context.input_ids, context)[0]  # (N, C)
        return hidden[context.outputs]

    def _check(self, spans: Sequence[Span]) -> None:
        tokens, outputs = sum(len(span.tokens) for span in spans), sum(span.outputs for span in spans)
        if not spans:
            raise ValueError("a step without spans")
        if tokens > self.max_tokens or outputs > self.max_outputs:
            raise ValueError(f"a step of {tokens} tokens and {outputs} outputs; the most are "
                             f"{self.max_tokens} and {self.max_outputs}")  # fmt: skip
        for span in spans:
            if not 0 <= span.adapter <= self.adapters:
                raise UserError(f"adapter {span.adapter}: the runner has {self.adapters}; 0 is none of them")
            end = span.start + len(span.tokens)
            check_room(end, self.config)
            if not 0 < len(span.tokens) >= span.outputs or len(span.pages) * PAGE_SIZE < end:
                raise ValueError(f"a span of {len(span.tokens)} tokens, {span.outputs} outputs, up to {end}, "
                                 f"on {len(span.pages)} pages")  # fmt: skip
            self.rings.check(span)


def choose_on_device(logits: Tensor, asks: Sequence[Ask]) -> list[Choice]:
    """A token for each ask, from logits (R, V); only the chosen numbers leave the device."""
    found: dict[int, Choice] = {}
    for params, places in alike(asks).items():
        group = [asks[place] for place in places]
        choices = choose(
            logits[[ask.row for ask in group]],
            [ask.prompt for ask in group],
            [ask.output for ask in group],
            params,
            [ask.stream for ask in group],
        )
        found.update(zip(places, choices, strict=True))
    return [found[place] for place in range(len(asks))]


def alike(asks: Sequence[Ask]) -> dict[SamplingParams, list[int]]:
    """Places of the asks whose tokens are chosen the same way; each text's own length, stops and seed aside."""
    groups: dict[SamplingParams, list[int]] = {}
    for place, ask in enumerate(asks):
        params = replace(ask.params, max_new_tokens=1, stop=(), ignore_eot=False, n=1, seed=None)
        groups.setdefault(params, []).append(place)
    return groups
