"""Direct preference optimisation (Rafailov et al. 2023): the better of two answers made likelier than the worse.

The loss of a pair is -log sigmoid(beta * (margin - reference)), nats; `margin` is by how much the model prefers the
chosen answer, log p(chosen) - log p(rejected), and `reference` the same of the model as it was before training. That
is computed once, before the first step, and kept in a file beside the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gpt2 import atomic
from gpt2.data.encoded import Pair, Pairs
from gpt2.data.packing import fill_row
from gpt2.model.config import IGNORE_INDEX
from gpt2.train.by_length import by_length
from gpt2.train.loop import Batch

BETA = 0.1
HEAD_ROWS = 512  # tokens whose logits exist at a time
REFERENCE_TOKENS = 8192  # of pairs that the reference reads at a time


@dataclass(frozen=True)
class PreferenceLoss:
    """An objective: a row is a pair, its chosen text segment 0 and its rejected one segment 1.

    Reads extra["reference"] (rows,). Rows without targets fill a batch up and count for nothing.
    """

    beta: float = BETA

    def count(self, batch: Batch) -> int:
        return int(pairs_in(batch).sum())

    def loss(self, worker: nn.Module, batch: Batch) -> Tensor:
        return -F.logsigmoid(self.beta * self.gains(worker, batch)).sum()

    def measure(self, worker: nn.Module, batch: Batch) -> dict[str, float]:
        """`margin`: nats by which the model prefers the chosen answers more than the reference does; `accuracy`: how
        often that is above 0, where it is 0 by half: as before the first step."""
        gains = self.gains(worker, batch)
        loss = -F.logsigmoid(self.beta * gains).sum()
        return {"loss": float(loss), "margin": float(gains.sum()), "accuracy": float((gains.sign() + 1).sum() / 2)}

    def gains(self, worker: nn.Module, batch: Batch) -> Tensor:
        """margin - reference of each pair, float32 (N)."""
        there = pairs_in(batch)
        return margins(worker, batch)[there] - batch.extra["reference"][there]


def pairs_in(batch: Batch) -> Tensor:
    """Which rows hold a pair, bool (rows,)."""
    return (batch.targets != IGNORE_INDEX).any(1)


def margins(worker: nn.Module, batch: Batch) -> Tensor:
    """log p(chosen) - log p(rejected) of each row's answers, float32 (rows,)."""
    assert batch.segment_ids is not None
    hidden = worker.body(batch.inputs, batch.context)  # type: ignore[operator]
    wanted = batch.targets != IGNORE_INDEX
    nats = token_nats(worker, hidden[wanted], batch.targets[wanted])  # (N,)
    signed = torch.where(batch.segment_ids[wanted] == 0, -nats, nats)
    rows = wanted.nonzero()[:, 0]
    return signed.new_zeros(len(batch.inputs)).index_add(0, rows, signed)


def token_nats(worker: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """hidden (N, C) and targets (N) -> cross-entropies (N), float32; logits exist for HEAD_ROWS tokens at a time.

    Each pair weighs its gradient by its own sigmoid, so that the summing head of training does not serve here; the
    backward pass makes the logits again.
    """

    def nats(hidden: Tensor, targets: Tensor) -> Tensor:
        logits: Tensor = worker.head(hidden)  # type: ignore[operator]
        return F.cross_entropy(logits.float(), targets, reduction="none")

    parts = zip(torch.split(hidden, HEAD_ROWS), torch.split(targets, HEAD_ROWS), strict=True)
    return torch.cat([checkpoint(nats, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def fill_pair(pair: Pair, room: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """One row of a pair: inputs, targets, segment_ids (room,) each; see packing.fill_row."""
    return fill_row([pair.chosen, pair.rejected], room)


@torch.no_grad()
def reference_margins(model: nn.Module, pairs: Pairs, device: str = "cpu") -> NDArray[np.float32]:
    """How much the model as it is now prefers each pair's chosen answer, nats (n,): one pass over the pairs."""
    was_training = model.training
    model.eval()
    found = np.empty(len(pairs), np.float32)
    for numbers in by_length(pairs.positions, REFERENCE_TOKENS):
        room = int(pairs.positions[numbers].max())
        rows = [fill_pair(pairs[number], room) for number in numbers]
        inputs, targets, segments = (torch.from_numpy(np.stack(part)).to(device) for part in zip(*rows, strict=True))
        found[numbers] = margins(model, Batch(inputs, targets, segments)).cpu().numpy()
    model.train(was_training)
    return found


def kept_reference(path: Path, what: str, compute: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
    """The margins in the file, or those that `compute` gives, which the file then holds.

    `what` names the pairs and the model; a file of others is made anew.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save_file

    try:
        with safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get("of") == what:
                kept: NDArray[np.float32] = file.get_tensor("margins")
                return kept
    except (FileNotFoundError, SafetensorError):
        pass
    found = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as temporary:
        save_file({"margins": found}, temporary, metadata={"of": what})
    return found
