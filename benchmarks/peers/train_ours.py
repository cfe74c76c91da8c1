"""Our side of the training benchmark: the package's own weights, optimizer and `take_step`."""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2.distributed.parallelize import parallelize
from gpt2.kernels.peak import device_peak
from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT
from gpt2.runtime import say
from gpt2.train.compiled import compile_blocks
from gpt2.train.config import OptimConfig
from gpt2.train.fused_weights import make_optimizer, make_weights
from gpt2.train.loop import Batch, Run, TrainState, take_step
from peers.train_plain import Shape

STEPS = 1_000_000  # of the run whose first steps these are


class Rows:
    """Batches that are handed in one by one."""

    def __init__(self) -> None:
        self.batch: Batch | None = None

    def next(self, step: int) -> Batch:
        assert self.batch is not None
        return self.batch

    def state(self) -> dict[str, int]:
        return {}


class OurLoop:
    """`gpt2 train --optimizer adamw` a step at a time; `micro` rows at a time, `recompute` and `compile` as there."""

    def __init__(
        self,
        shape: Shape,
        device: str,
        state: dict[str, Tensor],
        micro: int | None = None,
        recompute: str = "none",
        compile: str = "auto",
        dtype: str = "bfloat16",
        fp8: bool = False,
    ) -> None:
        model = GPT(model_config(shape))
        model.load_state_dict(state)
        number = getattr(torch, dtype)
        weights = make_weights(model.to(device), number)
        prepare(weights.worker, device, recompute, compile, dtype, fp8)
        optim = OptimConfig(
            optimizer="adamw",
            learning_rate=shape.learning_rate,
            betas=shape.betas,
            weight_decay=shape.weight_decay,
        )
        self.rows = Rows()
        self.run = Run(
            weights=weights,
            optimizer=make_optimizer(weights, optim, number),
            batches=self.rows,
            state=TrainState(),
            rate=shape.rate,
            max_steps=STEPS,
            micro_batch_size=micro or shape.rows,
            grad_clip=shape.clip,
            device=device,
        )
        weights.train()

    def step(self, ids: Tensor, targets: Tensor) -> float:
        """One optimizer step on rows (B, T); the loss before it."""
        self.rows.batch = Batch(ids, targets)
        result = take_step(self.run)
        self.run.state.step += 1
        if result.note:  # fewer rows at a time, for want of memory
            say(result.note)
        return result.loss


def prepare(model: GPT, device: str, recompute: str, compile: str, dtype: str, fp8: bool) -> None:
    """8-bit products, activation recompute and compiled blocks, as `gpt2 train` applies them."""
    tokens = float(STEPS * model.config.context_length)

    def compiled(worker: GPT) -> None:
        compile_blocks(worker, compile, device, device_peak(device, dtype), tokens)  # type: ignore[arg-type]

    parallelize(model, None, getattr(torch, dtype), recompute, compiled, fp8=fp8)  # type: ignore[arg-type]


def model_config(shape: Shape) -> GPTConfig:
    """The shape as our config."""
    return GPTConfig(
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.n_embd,
        vocab_size=shape.vocab_size,
        context_length=shape.length,
        bias=shape.bias,
    )
