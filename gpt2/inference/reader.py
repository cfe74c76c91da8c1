"""Tokens in, next-token logits out: a batch of rows over one KV cache, and what happens past the context.

B rows  T tokens  C n_embd  V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gpt2.model.gpt import GPT
from gpt2.model.kv_cache import KVCache


class Reader:
    """Reads each row's tokens once and remembers them in the cache.

    `windows` holds the tokens that each row sees, `starts` how many it has forgotten before them. A row that would
    pass the context length slides: its last half becomes the new window and is read again from position 0 (GPT-2's
    positions are absolute, so keys cannot just be dropped at the front); each token then costs about two tokens' work.

    After an exception in the middle of `read`, a single row is still sound: the next call reads what was not read.
    """

    def __init__(self, module: GPT, batch: int, capacity: int = 0) -> None:
        self.module = module
        self.cache = self._cache(batch, capacity)
        self.windows: list[list[int]] = [[] for _ in range(batch)]
        self.starts = [0] * batch

    def read(self, new: Sequence[Sequence[int]]) -> Tensor:
        """Add tokens to each row, at least one; the logits (B, V) of what follows, in float32."""
        for window, tokens in zip(self.windows, new, strict=True):
            window.extend(tokens)
        context_length = self.module.config.context_length
        full = [row for row, window in enumerate(self.windows) if len(window) > context_length]
        if full:
            self._slide(full, max(1, context_length // 2))
        unread = [window[done:] for window, done in zip(self.windows, self.cache.lengths, strict=True)]
        return self._forward(unread)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows in this order; a row may be taken several times."""
        if list(rows) != list(range(len(self.windows))):
            self.cache.select(rows)
            self.windows = [list(self.windows[row]) for row in rows]
            self.starts = [self.starts[row] for row in rows]

    def rewind(self, count: int) -> None:
        """Forget the last `count` tokens of a batch of one."""
        (window,) = self.windows
        length = len(window) - count
        self.cache.truncate([min(length, self.cache.lengths[0])])
        del window[length:]

    def _forward(self, unread: Sequence[Sequence[int]]) -> Tensor:
        counts = [len(tokens) for tokens in unread]
        if not all(counts):
            raise ValueError("each row needs a token to read")
        padded = [[*tokens, *[0] * (max(counts) - len(tokens))] for tokens in unread]
        hidden = self.module.body(self._tensor(padded), self.cache)  # (B, T, C)
        self.cache.truncate([len(window) for window in self.windows])
        last = hidden[self._tensor(range(len(counts))), self._tensor(counts) - 1]  # (B, C)
        return self.module.head(last).float()

    def _slide(self, rows: Sequence[int], keep: int) -> None:
        """Shorten the windows of full rows to `keep` tokens and read all but the last of these again."""
        self.cache.truncate([0 if row in rows else length for row, length in enumerate(self.cache.lengths)])
        for row in rows:
            self.starts[row] += len(self.windows[row]) - keep
            del self.windows[row][:-keep]
        if keep > 1:
            fresh = self._cache(len(rows), keep)
            self.module.body(self._tensor([self.windows[row][:-1] for row in rows]), fresh)
            self.cache.paste(rows, fresh)

    def _cache(self, batch: int, capacity: int) -> KVCache:
        weight = self.module.wte.weight
        return KVCache(self.module.config, batch, capacity, weight.dtype, weight.device)

    def _tensor(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, device=self.module.wte.weight.device)
