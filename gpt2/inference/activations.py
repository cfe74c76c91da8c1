"""What goes on inside a model while it reads a text: hidden states and attention, taken from outside.

The forward pass is the model's own: hooks copy what flows between the blocks, and a context that also keeps the
probabilities stands in for plain causal attention.

    T tokens  C n_embd  H heads  D head_dim  L layers
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.errors import UserError
from gpt2.model.gpt import GPT
from gpt2.model.masks import Causal


@dataclass(frozen=True)
class Activations:
    """Float32 on the processor, counted as transformers counts them."""

    hidden_states: Tensor  # (L + 1, T, C): the embeddings, then after each block; the last after ln_f
    attention: Tensor  # (L, H, T, T): query, key
    logits: Tensor  # (T, vocab_size)


class Recording(Causal):
    """Attention under each layer's own mask, computed openly, that keeps each layer's probabilities."""

    def __init__(self) -> None:
        self.probabilities: list[Tensor] = []

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        scores = q @ k.transpose(-1, -2) / q.size(-1) ** 0.5  # (1, H, T, T)
        seen = self.patterns[layer % len(self.patterns)].mask(q.size(2), q.device)
        probabilities = scores.float().masked_fill(~seen, -torch.inf).softmax(-1)
        self.probabilities.append(probabilities[0].cpu())
        return F.dropout(probabilities.to(v.dtype), dropout) @ v


@torch.inference_mode()
def record(module: GPT, tokens: list[int]) -> Activations:
    """Read one text and return everything seen on the way; UserError if it passes the context or is empty."""
    if not tokens:
        raise UserError("there is no text to look at: it has no tokens")
    states: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        states.append(inputs[0][0].float().cpu())

    handles = [block.register_forward_pre_hook(keep) for block in module.h]
    context = Recording()
    try:
        hidden = module.body(torch.tensor([tokens], device=module.wte.weight.device), context)  # (1, T, C)
    finally:
        for handle in handles:
            handle.remove()
    return Activations(
        hidden_states=torch.stack([*states, hidden[0].float().cpu()]),
        attention=torch.stack(context.probabilities),
        logits=module.head(hidden)[0].float().cpu(),
    )
