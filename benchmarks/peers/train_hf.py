"""transformers' GPT-2 in the training benchmark: weights in bfloat16 or float32, its own loss, torch's fused AdamW."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peers.train_plain import Shape, adamw


class TransformersLoop:
    """GPT2LMHeadModel from random weights, one step at a time; compiled or not."""

    def __init__(self, shape: Shape, device: str, compiled: bool, dtype: str = "bfloat16") -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            n_layer=shape.n_layer,
            n_head=shape.n_head,
            n_embd=shape.n_embd,
            vocab_size=shape.vocab_size,
            n_positions=shape.length,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            use_cache=False,
            attn_implementation="sdpa",
        )
        self.shape, self.device, self.steps = shape, device, 0
        self.model = GPT2LMHeadModel(config).to(device=device, dtype=getattr(torch, dtype)).train()
        self.run: Any = torch.compile(self.model) if compiled else self.model
        self.optimizer = adamw(self.model, shape)

    def step(self, ids: Tensor, targets: Tensor) -> float:
        """One optimizer step; the loss before it, over all but each row's first token: transformers shifts itself."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.shape.learning_rate * self.shape.rate(self.steps)
        ids = ids.to(self.device)
        loss = self.run(input_ids=ids, labels=ids).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.shape.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return float(loss.detach())
