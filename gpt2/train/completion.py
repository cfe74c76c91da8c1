"""The language model's loss on rows of which much is only read: prompts, and padding."""

from __future__ import annotations

from torch import Tensor, nn

from gpt2.model.config import IGNORE_INDEX
from gpt2.train.loop import Batch, TokenLoss


class CompletionLoss(TokenLoss):
    """TokenLoss whose head, a third of a small model's work, is asked only where something is learned.

    It goes past the model's own forward pass, which a sharded model needs.
    """

    def loss(self, worker: nn.Module, batch: Batch) -> Tensor:
        hidden: Tensor = worker.body(batch.inputs, batch.context)  # type: ignore[operator]
        wanted = batch.targets != IGNORE_INDEX
        if not wanted.any():
            return hidden.float().sum() * 0.0
        nats: Tensor = worker.loss(hidden[wanted], batch.targets[wanted])[0]  # type: ignore[operator]
        return nats
