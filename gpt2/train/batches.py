"""What the loop reads: the loader's rows as batches of tensors."""

from __future__ import annotations

import torch

from gpt2.data.loader import Loader
from gpt2.errors import UserError
from gpt2.train.config import TrainConfig
from gpt2.train.loop import Batch


class LoaderBatches:
    """The loader's rows as batches of tensors, one optimizer step each, cut shorter where the config says so."""

    def __init__(self, loader: Loader, config: TrainConfig) -> None:
        self.loader, self.config = loader, config

    def next(self, step: int) -> Batch:
        inputs, targets = self.loader.next_batch(self.config.batch_rows)
        largest = max(inputs.max(), targets.max())
        if largest >= self.config.model.vocab_size:
            raise UserError(
                f"{self.config.data}: holds token {largest}, but the vocabulary ends at "
                f"{self.config.model.vocab_size - 1}; the tokens were made with another tokenizer"
            )
        length = self.config.length_at(step)
        return Batch(torch.from_numpy(inputs).view(-1, length), torch.from_numpy(targets).view(-1, length))

    def state(self) -> dict[str, int]:
        return self.loader.state()
