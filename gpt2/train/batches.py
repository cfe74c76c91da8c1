"""What the loop reads: rows of tokens as one batch a step, the next one fetched while the last one is trained on."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from gpt2.data.loader import Loader
from gpt2.data.mixture import Mixture
from gpt2.distributed.ranks import ALONE, Ranks
from gpt2.errors import UserError
from gpt2.train.config import TrainConfig
from gpt2.train.corpus import Corpus
from gpt2.train.loop import Batch


@dataclass(frozen=True)
class Drawn:
    """A step's batch, and where the data stands behind it."""

    step: int
    batch: Batch
    cursor: dict[str, Any]
    epochs: dict[str, float]


class TokenBatches:
    """Rows as batches: as many as the step wants, cut shorter and told apart by documents where the config says so.

    A thread draws the batch of the step after the one that was asked for. The cursor is that of the batch taken, so
    what is drawn ahead is drawn again by a resumed run; asked for another step, it goes back and draws that one.
    """

    def __init__(self, rows: Loader | Mixture, config: TrainConfig, eot_id: int | None = None) -> None:
        self.rows, self.config = rows, config
        self.eot_id = eot_id if config.pack == "masked" else None
        self.on_gpu = config.device.startswith("cuda")
        self.cursor: dict[str, Any] = dict(rows.state())
        self._epochs: dict[str, float] = passes(rows)
        self._thread = ThreadPoolExecutor(1, "batches")
        self._ahead: tuple[int, Future[Drawn]] | None = None

    def next(self, step: int) -> Batch:
        """The batch of this step (the first is 0). UserError if it holds a token that the model does not know."""
        drawn = self._take(step)
        self.cursor, self._epochs = drawn.cursor, drawn.epochs
        if self.config.max_steps is None or step + 1 < self.config.max_steps:
            self._ahead = step + 1, self._thread.submit(self._draw, step + 1)
        return drawn.batch

    def state(self) -> dict[str, Any]:
        """The cursor behind the last batch that was taken."""
        return self.cursor

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on behind the batch after which `state` was taken, with any number of ranks."""
        if self._ahead is not None:
            self._ahead[1].exception()
            self._ahead = None
        self.rows.load(state)
        self.cursor, self._epochs = dict(state), passes(self.rows)

    def epochs(self) -> dict[str, float]:
        """How often each part of a mixture has been read; empty without one."""
        return self._epochs

    def _take(self, step: int) -> Drawn:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == step:
            return ahead[1].result()
        if ahead is not None:
            ahead[1].exception()  # wait for it, and forget it with any error of it
        self.rows.load(self.cursor)
        return self._draw(step)

    def _draw(self, step: int) -> Drawn:
        inputs, targets = self.rows.next_batch(self.config.ramp.rows_at(step) // self.rows.world_size)
        largest = max(inputs.max(), targets.max())
        if largest >= self.config.model.vocab_size:
            raise UserError(
                f"{self.config.data}: holds token {largest}, but the vocabulary ends at "
                f"{self.config.model.vocab_size - 1}; the tokens were made with another tokenizer"
            )
        length = self.config.length_at(step)
        ids, wanted = torch.from_numpy(inputs).view(-1, length), torch.from_numpy(targets).view(-1, length)
        segments = None if self.eot_id is None else documents(ids, self.eot_id)
        if self.on_gpu:  # so that the copy to it needs nobody to wait
            ids, wanted = ids.pin_memory(), wanted.pin_memory()
            segments = segments.pin_memory() if segments is not None else None
        return Drawn(step, Batch(ids, wanted, segments), dict(self.rows.state()), passes(self.rows))


def documents(inputs: torch.Tensor, eot_id: int) -> torch.Tensor:
    """Inputs (rows, T) -> which document of its row each token belongs to, counted from 0.

    The end-of-text token goes with the document behind it: a model begins a text from it, so it is there that it
    learns what texts begin with. Every target still counts.
    """
    return (inputs == eot_id).cumsum(dim=1)


def passes(rows: Loader | Mixture) -> dict[str, float]:
    """How often each part has been read; empty if there are no parts."""
    return rows.passes() if isinstance(rows, Mixture) else {}


def open_batches(
    corpus: Corpus, config: TrainConfig, ranks: Ranks = ALONE, cursor: Mapping[str, Any] | None = None
) -> TokenBatches:
    """This rank's batches of a run, from its start or from a cursor.

    UserError where rows cannot be dealt out evenly, or where documents are to be told apart and nobody knows how.
    """
    for rows in {config.ramp.rows_at(0), config.batch_rows}:
        if rows % ranks.data_size:
            raise UserError(
                f"a step of {rows} rows cannot be dealt out evenly to {ranks.data_size} groups of processes; change "
                f"{'batch_tokens' if rows == config.batch_rows else 'batch_ramp_from'}"
            )
    if config.pack == "masked" and corpus.train.meta.eot_id is None:
        raise UserError(
            f"pack = masked: {corpus.train.folder} does not say which token ends a document; make it with gpt2 prepare"
        )
    batches = TokenBatches(corpus.rows(config, ranks), config, corpus.train.meta.eot_id)
    if cursor is not None:
        batches.load(cursor)
    return batches
