"""Batches of training windows in seeded order, and the windows of one pass over held-out text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from gpt2.data.permutation import Permutation
from gpt2.data.shards import Split
from gpt2.errors import UserError
from gpt2.model.config import IGNORE_INDEX

Batch = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


class Loader:
    """Draws windows of `context_length` tokens, each epoch every window once in a seeded order.

    An epoch cuts the split into windows that do not overlap, from a seeded offset, so that the cuts fall elsewhere
    each time. Rows are numbered globally: micro-batch after micro-batch, and in each rank after rank. So the same
    rows come whatever `world_size` and the split into micro-batches are, and the whole cursor is (epoch, position).

    Raises UserError if the split is shorter than a window, or if `state` is of another split, seed or context.
    """

    def __init__(
        self,
        split: Split,
        context_length: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        state: Mapping[str, int] | None = None,
    ) -> None:
        if len(split) < context_length + 1:
            raise UserError(
                f"{split.folder}: {split.name} has {len(split):,} tokens, fewer than the {context_length + 1:,} of "
                f"one window (context_length {context_length:,} and one target); use a smaller context or more text"
            )
        self.split, self.context_length, self.seed = split, context_length, seed
        self.rank, self.world_size = rank, world_size
        self._position = 0
        self._begin(0)
        if state is not None:
            self.load(state)

    @property
    def epoch(self) -> int:
        """Epochs finished: 0 in the first."""
        return self._epoch

    @property
    def passes(self) -> float:
        """How often the split has been read so far."""
        return self._epoch + self._position / self._windows.size

    @property
    def tokens_per_epoch(self) -> int:
        """Targets of the current epoch, all ranks together."""
        return self._windows.size * self.context_length

    def next_batch(self, rows: int) -> Batch:
        """This rank's `rows` of the next `rows * world_size`: inputs and targets, int64 (rows, context_length).

        A batch that crosses the epoch's end goes on in the next one.
        """
        starts = self.draw(rows * self.world_size)[self.rank * rows : (self.rank + 1) * rows]
        windows = np.stack([self.window(start) for start in starts])
        return windows[:, :-1].copy(), windows[:, 1:].copy()

    def window(self, start: int) -> npt.NDArray[np.int64]:
        """The tokens of the window that starts there, and the one behind it: its last target."""
        return self.split.tokens(start, start + self.context_length + 1)

    def state(self) -> dict[str, int]:
        """The cursor. Given back to a new Loader, of whatever world size, it goes on with the same rows."""
        return {"epoch": self._epoch, "position": self._position, **self._identity()}

    def _identity(self) -> dict[str, int]:
        return {"seed": self.seed, "context_length": self.context_length, "tokens": len(self.split)}

    def load(self, state: Mapping[str, int]) -> None:
        """Go on where `state` was taken; UserError if that was of another split, seed or context."""
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise UserError(
                    f"{self.split.folder}: the run to resume read data with {name} {state.get(name)}, now it is "
                    f"{value}; resume with the same data and settings"
                )
        self._begin(state["epoch"])
        self._position = state["position"]

    def _begin(self, epoch: int) -> None:
        """Lay out an epoch: its offset and its order."""
        self._epoch = epoch
        spare = len(self.split) - 1 - self.context_length  # an offset must leave room for one window
        offset = np.random.default_rng([self.seed % 2**64, epoch]).integers(min(self.context_length, spare + 1))
        self._offset = int(offset)
        count = (len(self.split) - 1 - self._offset) // self.context_length
        self._windows = Permutation(count, self.seed, epoch)

    def draw(self, count: int) -> list[int]:
        """Where the next `count` windows start, and move on behind them."""
        starts: list[int] = []
        while len(starts) < count:
            if self._position == self._windows.size:
                self._begin(self._epoch + 1)
                self._position = 0
            end = min(self._windows.size, self._position + count - len(starts))
            windows = self._windows(np.arange(self._position, end))
            starts += (self._offset + windows * self.context_length).tolist()
            self._position = end
        return starts


def eval_windows(split: Split, context_length: int, rows: int) -> Iterator[Batch]:
    """One pass in order: every token of the split is a target exactly once.

    Windows do not overlap. The first input is `split.preceding`; where that is None the split's first token is no
    target. Yields int64 (up to `rows`, context_length); the last window is filled up with inputs 0 and targets
    IGNORE_INDEX.
    """
    before = [] if split.preceding is None else [split.preceding]
    skipped = 1 - len(before)
    step = rows * context_length
    for start in range(skipped, len(split), step):
        stop = min(len(split), start + step)
        if start == 0:
            inputs = np.concatenate([np.array(before, np.int64), split.tokens(0, stop - 1)])
        else:
            inputs = split.tokens(start - 1, stop - 1)
        yield _fill(inputs, context_length, 0), _fill(split.tokens(start, stop), context_length, IGNORE_INDEX)


def _fill(tokens: npt.NDArray[np.int64], width: int, value: int) -> npt.NDArray[np.int64]:
    """Lay tokens in rows, the last filled up with `value`."""
    filled = np.full(-(-len(tokens) // width) * width, value, np.int64)
    filled[: len(tokens)] = tokens
    return filled.reshape(-1, width)
