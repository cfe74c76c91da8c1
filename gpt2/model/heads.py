"""A head beside the model's own: from a text's last hidden state to labels, as GPT-1 did it (Radford et al. 2018, 3.2).

It is hung onto a GPT from outside, as `score`: transformers' name in GPT2ForSequenceClassification. The model goes on
to be a language model, and everything that walks its parameters finds the head among them.

    B rows  T tokens  C n_embd  L labels  N texts
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.model.gpt import GPT

HEAD = "score"  # the module's name; PEFT and transformers know it by this one


def add_head(model: GPT, labels: int) -> nn.Linear:
    """Hang a new head for so many labels onto the model, N(0, init_std), float32, to be trained; returns it.

    Where the base is to be frozen, freeze it first: what freezes a whole model would freeze the head too.
    """
    head = nn.Linear(model.config.n_embd, labels, bias=False, device=model.ln_f.weight.device)
    nn.init.normal_(head.weight, 0.0, model.config.init_std)
    model.add_module(HEAD, head)
    return head


def head_of(model: nn.Module) -> nn.Linear:
    """The head that `add_head` hung there."""
    head = getattr(model, HEAD)
    assert isinstance(head, nn.Linear)
    return head


def label_logits(model: nn.Module, hidden: Tensor, ends: Tensor) -> Tensor:
    """hidden (B, T, C) and the places of last tokens, ends (B, S), -1 where there is no text -> (N, L), float32.

    Texts come row by row. The products are float32 whatever the model's format: they cost nothing.
    """
    rows, slots = (ends >= 0).nonzero(as_tuple=True)
    last = hidden[rows, ends[rows, slots]]  # (N, C)
    return F.linear(last.float(), head_of(model).weight.float())


@torch.no_grad()
def last_logits(model: GPT, ids: Tensor, lengths: Tensor) -> Tensor:
    """ids (B, T), padded behind each text's `lengths` (B) tokens -> (B, L): for texts that stand alone in their rows.

    What is behind a text is never seen by it, so any padding will do.
    """
    return label_logits(model, model.body(ids), lengths[:, None] - 1)
