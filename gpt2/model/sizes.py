"""How big and how dear a config is: parameters, FLOPs, bytes. Arithmetic on the config, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2.model.config import GPTConfig

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
GPT3_TOKENS = 300 * 10**9  # that every size of GPT-3 was trained on (Table 2.1)
PUBLISHED_ROWS = {  # of one optimizer step: GPT-2 section 2.3; GPT-3 Table 2.1 (0.5M, 1M, 2M and 3.2M tokens)
    **dict.fromkeys(("gpt2-124m", "gpt2-355m", "gpt2-774m", "gpt2-1558m"), 512),
    **dict.fromkeys(("gpt3-125m", "gpt3-350m", "gpt3-760m"), 256),
    **dict.fromkeys(("gpt3-xl", "gpt3-xl-2048", "gpt3-2.7b"), 512),
    **dict.fromkeys(("gpt3-6.7b", "gpt3-13b"), 1024),
    "gpt3-175b": 1536,
}


def parameters(config: GPTConfig) -> int:
    """All numbers of the model; a tied head is counted once, padding rows are not counted."""
    return (
        embedding_parameters(config)
        + config.n_layer * block_parameters(config)
        + _norm(config)
        + (0 if config.tie_head else config.vocab_size * config.n_embd)
        + (config.vocab_size if config.head_bias else 0)
    )


def embedding_parameters(config: GPTConfig) -> int:
    """wte and wpe."""
    return (config.vocab_size + config.context_length) * config.n_embd


def block_parameters(config: GPTConfig) -> int:
    """One Transformer block: attention, MLP and two layer norms."""
    matrices = kernel_numbers(config)
    biases = 3 * config.attention_width + config.n_embd + config.n_inner + config.n_embd
    return matrices + (biases if config.bias else 0) + 2 * _norm(config)


def kernel_numbers(config: GPTConfig) -> int:
    """The numbers in one block's matrices: q, k, v and attention's output, and the MLP's two."""
    return config.n_embd * (4 * config.attention_width + 2 * config.n_inner)


def training_flops_per_token(config: GPTConfig, length: int | None = None) -> float:
    """Forward and backward FLOPs per trained token at sequences of `length` tokens.

    6 (parameters - wpe) + 6 n_layer n_head head_dim T: each weight is multiplied and added once forward and twice
    backward; attention's two products count their causal half only.
    """
    length = length or config.context_length
    dense = parameters(config) - config.context_length * config.n_embd
    return 6.0 * dense + 6.0 * config.n_layer * config.attention_width * length


def forward_flops_per_token(config: GPTConfig, length: int | None = None) -> float:
    """A third of training: the forward pass alone, the head on every position."""
    return training_flops_per_token(config, length) / 3


def kv_cache_bytes(config: GPTConfig, tokens: int, dtype: str = "float32") -> int:
    """Keys and values of `tokens` tokens in every layer."""
    return 2 * config.n_layer * config.attention_width * tokens * BYTES[dtype]


@dataclass(frozen=True)
class TrainingBytes:
    """What one training step holds on one device, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def training_bytes(
    config: GPTConfig, micro_batch_size: int, dtype: str = "bfloat16", length: int | None = None
) -> TrainingBytes:
    """Weights and gradients in `dtype`; AdamW's two moments, and masters if `dtype` is short, in float32."""
    count = parameters(config)
    masters = 4 * count if dtype != "float32" else 0
    return TrainingBytes(
        weights=count * BYTES[dtype],
        gradients=count * BYTES[dtype],
        optimizer=8 * count + masters,
        activations=activation_bytes(config, micro_batch_size, dtype, length),
    )


def activation_bytes(
    config: GPTConfig, micro_batch_size: int, dtype: str = "bfloat16", length: int | None = None
) -> int:
    """What forward keeps for backward: per token and layer 6 C + 4 A + 2 inner numbers, and the head's logits.

    Attention's probabilities are not among them: SDPA recomputes them. (The processor's fused attention keeps them, for
    rows of at most 512 tokens.)
    """
    tokens = micro_batch_size * (length or config.context_length)
    per_layer = 6 * config.n_embd + 4 * config.attention_width + 2 * config.n_inner
    body = tokens * (config.n_layer * per_layer + 2 * config.n_embd) * BYTES[dtype]
    logits = tokens * config.padded_vocab_size * (BYTES[dtype] + 4 + 4)
    return body + logits


def _norm(config: GPTConfig) -> int:
    return config.n_embd * (2 if config.bias else 1)
