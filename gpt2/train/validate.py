"""Validation loss: every held-out token once, in windows of the training context."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpt2.data.loader import eval_windows
from gpt2.data.shards import Split
from gpt2.distributed.ranks import ALONE, Ranks
from gpt2.model.config import IGNORE_INDEX
from gpt2.model.gpt import GPT
from gpt2.model.masks import Packed
from gpt2.train.batches import documents

BATCH_TOKENS = {"cpu": 4_096, "cuda": 16_384}  # of windows at a time: more gain nothing and take memory


class BrokenOff(Exception):
    """Somebody asked the run to end while it was being validated."""


@dataclass(frozen=True)
class Validation:
    """Sums over the scored targets: nats, how many, and how many UTF-8 bytes of text they stand for."""

    nats: float
    targets: int
    text_bytes: float | None
    start_loss: float  # nats per token over the first `mark` tokens only, whatever the whole is

    @property
    def per(self) -> str:
        """What the loss is a mean over."""
        return "token"

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.targets

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float | None:
        return self.nats / math.log(2) / self.text_bytes if self.text_bytes else None

    def as_metrics(self) -> dict[str, float]:
        metrics = {"val/loss": self.loss, "val/perplexity": self.perplexity}
        if self.bits_per_byte is not None:
            metrics["val/bits_per_byte"] = self.bits_per_byte
        return metrics


@torch.no_grad()
def validate(
    model: GPT,
    split: Split,
    device: str,
    most_tokens: int | None = None,
    mark: int | None = None,
    length: int | None = None,
    ranks: Ranks = ALONE,
    asked: Callable[[], bool] = lambda: False,
    eot_id: int | None = None,
) -> Validation:
    """Score the split from its start, at most about `most_tokens`; BrokenOff where `asked`, of any rank, says so.

    `mark` fixes the part whose loss is compared between evaluations of different extent; `length` is that of the
    windows, the model's context if it is None. Several ranks share each batch of windows and all get the same sums.
    With `eot_id` no document of a window sees another, as in a run that packs them so.
    """
    length = length or model.config.context_length
    was_training = model.training
    model.eval()
    tokens = BATCH_TOKENS["cpu" if device == "cpu" else "cuda"]
    total, targets = 0.0, 0
    goal = min(most_tokens or len(split), len(split))
    start_loss: float | None = None
    for inputs, wanted in eval_windows(split, length, max(1, tokens // length)):
        mine = share_of_rows(inputs, 0, ranks), share_of_rows(wanted, IGNORE_INDEX, ranks)
        given, aims = (torch.from_numpy(rows).to(device) for rows in mine)
        loss, count = score(model, given, aims, eot_id, ranks)
        nats, scored, ends = ranks.total([loss, count, float(asked())])
        if ends:
            model.train(was_training)
            raise BrokenOff
        total, targets = total + nats, targets + round(scored)
        if start_loss is None and mark and targets >= mark:
            start_loss = total / targets
        if targets >= goal:
            break
    model.train(was_training)
    share = targets / len(split)
    text_bytes = split.text_bytes * share if split.text_bytes else None
    return Validation(total, targets, text_bytes, total / targets if start_loss is None else start_loss)


@torch.no_grad()
def score(model: GPT, inputs: Tensor, targets: Tensor, eot_id: int | None, ranks: Ranks) -> tuple[float, int]:
    """Summed loss (nats) and number of the targets, (B, T) each; where a lone process's memory runs out, in halves."""
    try:
        context = None if eot_id is None else Packed(documents(inputs, eot_id))
        loss, count = model(inputs, targets, context)
        return float(loss), int(count)
    except torch.OutOfMemoryError:
        if len(inputs) == 1 or ranks.world_size > 1:
            raise
    half = len(inputs) // 2
    parts = [score(model, inputs[rows], targets[rows], eot_id, ranks) for rows in (slice(half), slice(half, None))]
    return parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]


def share_of_rows(rows: npt.NDArray[np.int64], filler: int, ranks: Ranks) -> npt.NDArray[np.int64]:
    """Every `data_size`-th row; as many on each rank, so that all make the same passes, with rows of `filler`."""
    if ranks.data_size == 1:
        return rows
    missing = -len(rows) % ranks.data_size
    whole = np.concatenate([rows, np.full((missing, rows.shape[1]), filler, np.int64)])
    return whole[ranks.data_rank :: ranks.data_size]
