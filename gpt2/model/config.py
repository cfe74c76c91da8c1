"""The shape of one GPT. No torch here: sizes, plans and the processor's runner read it too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gpt2.errors import UserError

IGNORE_INDEX = -100  # a target that is not one: it adds nothing to the loss and is not counted
ATTENTION_KINDS = ("dense", "banded")


@dataclass(frozen=True)
class GPTConfig:
    """GPT-2's and GPT-3's one architecture. The defaults are GPT-2 124M.

    `head_dim` 0 means n_embd / n_head, `n_inner` 0 means 4 n_embd. `attention_pattern` is repeated over the
    layers. `vocab_size` counts real tokens; rows that memory pads to are no part of the model.
    """

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_inner: int = 0
    head_dim: int = 0
    vocab_size: int = 50257
    context_length: int = 1024
    dropout: float = 0.0
    bias: bool = True
    norm_eps: float = 1e-5
    activation: Literal["gelu_tanh", "gelu_erf"] = "gelu_tanh"
    tie_head: bool = True
    head_bias: bool = False
    init_std: float = 0.02
    scale_by_layer: bool = False  # attention logits also divided by the layer's number, as in Stanford's Mistral
    attention_pattern: tuple[str, ...] = field(default=("dense",))

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_embd", "vocab_size", "context_length"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.head_dim == 0:
            if self.n_embd % self.n_head:
                raise UserError(
                    f"n_embd = {self.n_embd} is not a multiple of n_head = {self.n_head}; change one, or set head_dim"
                )
            object.__setattr__(self, "head_dim", self.n_embd // self.n_head)
        if self.n_inner == 0:
            object.__setattr__(self, "n_inner", 4 * self.n_embd)
        if self.head_dim < 0 or self.n_inner < 0:
            raise UserError("head_dim and n_inner must not be negative")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout = {self.dropout}: must be at least 0 and below 1")
        object.__setattr__(self, "attention_pattern", tuple(self.attention_pattern))
        for kind in self.attention_pattern:
            if kind not in ATTENTION_KINDS:
                raise UserError(f"attention_pattern: '{kind}' is unknown; choose from {', '.join(ATTENTION_KINDS)}")
            if kind == "banded":
                raise UserError("attention_pattern: 'banded' layers are not built yet; use dense")
        if not self.attention_pattern:
            raise UserError("attention_pattern is empty; use ['dense']")

    @property
    def attention_width(self) -> int:
        """n_head * head_dim: n_embd in every published GPT-2, its own number in two GPT-3 sizes."""
        return self.n_head * self.head_dim

    @property
    def padded_vocab_size(self) -> int:
        """Rows held in memory: the vocabulary rounded up to a multiple of 64, which matrix units like."""
        return -(-self.vocab_size // 64) * 64

    def attention_kind(self, layer: int) -> str:
        """`dense` or `banded`, by the pattern repeated over the layers."""
        return self.attention_pattern[layer % len(self.attention_pattern)]
