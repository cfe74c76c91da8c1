"""The shape of one GPT. No torch here: sizes, plans and the processor's runner read it too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt2.config import setting
from gpt2.errors import UserError

IGNORE_INDEX = -100  # a target that is not one: it adds nothing to the loss and is not counted
ATTENTION_KINDS = ("dense", "banded", "strided")


@dataclass(frozen=True)
class GPTConfig:
    """GPT-2's and GPT-3's one architecture. The defaults are GPT-2 124M.

    `head_dim` 0 means n_embd / n_head, `n_inner` 0 means 4 n_embd. `attention_pattern` is repeated over the
    layers. `vocab_size` counts real tokens; rows that memory pads to are no part of the model.

    A token at position i sees in a layer that is
    - dense: positions j <= i;
    - banded: i - band_width < j <= i, so band_width tokens, itself among them;
    - strided: j <= i with (i - j) a multiple of attention_stride: the other half of the Sparse Transformer's factorised
      pattern (Child et al. 2019, section 4.2), for layers that alternate with banded ones.
    GPT-3 alternates dense and banded layers (Brown et al. 2020, section 2.1); its band's width is not published.
    """

    n_layer: int = setting(12, "blocks")
    n_head: int = setting(12, "attention heads a block")
    n_embd: int = setting(768, "width of the residual stream")
    n_inner: int = setting(0, "width of the MLP; 0: 4 n_embd")
    head_dim: int = setting(0, "width of a head; 0: n_embd / n_head")
    vocab_size: int = setting(50257, "kinds of tokens; in training the data's")
    context_length: int = setting(1024, "tokens the model can look back on")
    dropout: float = setting(0.0, "share of activations dropped in training")
    bias: bool = setting(True, "biases in linear layers and norms")
    norm_eps: float = setting(1e-5, "layer norm's epsilon")
    activation: Literal["gelu_tanh", "gelu_erf"] = setting("gelu_tanh", "the MLP's non-linearity")
    tie_head: bool = setting(True, "the head is the token embedding")
    head_bias: bool = setting(False, "a bias on the head")
    init_std: float = setting(0.02, "spread of the first weights")
    scale_by_layer: bool = setting(False, "attention logits also divided by the layer's number, as in Mistral's GPT-2")
    attention_pattern: tuple[str, ...] = setting(
        ("dense",), "kinds of attention, repeated over the layers: dense, banded, strided"
    )
    band_width: int = setting(0, "tokens that a banded layer's token sees, itself among them")
    attention_stride: int = setting(0, "a strided layer's token sees itself and each so-manieth before it")

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
        self._check_pattern()

    def _check_pattern(self) -> None:
        for kind in self.attention_pattern:
            if kind not in ATTENTION_KINDS:
                raise UserError(f"attention_pattern: '{kind}' is unknown; choose from {', '.join(ATTENTION_KINDS)}")
        if not self.attention_pattern:
            raise UserError("attention_pattern is empty; use ['dense']")
        for kind, name in (("banded", "band_width"), ("strided", "attention_stride")):
            value, used = getattr(self, name), kind in self.attention_pattern
            if used and value < 1:
                raise UserError(f"{name} = {value}: attention_pattern has {kind} layers, which need at least 1")
            if value and not used:
                raise UserError(f"{name} = {value}: attention_pattern has no {kind} layers; add some, or set it to 0")

    @property
    def attention_width(self) -> int:
        """n_head * head_dim: n_embd in every published GPT-2, its own number in two GPT-3 sizes."""
        return self.n_head * self.head_dim

    @property
    def padded_vocab_size(self) -> int:
        """Rows held in memory: the vocabulary rounded up to a multiple of 64, which matrix units like."""
        return -(-self.vocab_size // 64) * 64

    def attention_kind(self, layer: int) -> str:
        """`dense`, `banded` or `strided`, by the pattern repeated over the layers."""
        return self.attention_pattern[layer % len(self.attention_pattern)]

    def window(self, layer: int) -> int:
        """Tokens that a token of this layer sees at most, itself among them, or 0: no bound."""
        return self.band_width if self.attention_kind(layer) == "banded" else 0

    def stride(self, layer: int) -> int:
        """How far apart the tokens are that a token of this layer sees; 1 but for strided layers."""
        return self.attention_stride if self.attention_kind(layer) == "strided" else 1

    @property
    def is_dense(self) -> bool:
        """Whether every layer looks back on everything, as GPT-2's do."""
        return set(self.attention_pattern) == {"dense"}

    def describe_pattern(self) -> str:
        """For people: `dense, banded (256 tokens), repeated`."""
        words = {"banded": f"banded ({self.band_width} tokens)", "strided": f"strided (by {self.attention_stride})"}
        kinds = [words.get(kind, kind) for kind in self.attention_pattern]
        return ", ".join(kinds) + (", repeated" if len(kinds) > 1 else "")
