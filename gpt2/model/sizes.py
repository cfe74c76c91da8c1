"""How big and how dear a config is: parameters, FLOPs, bytes. Arithmetic on the config, no torch."""

from __future__ import annotations

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


def non_embedding_parameters(config: GPTConfig) -> int:
    """The blocks and the last norm: without embeddings and head, as Kaplan et al. (2020) count a model's size."""
    return config.n_layer * block_parameters(config) + _norm(config)


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

    6 (parameters - wpe) + 12 n_head head_dim times what the layers' tokens see: each weight is multiplied and added
    once forward and twice backward, attention's two products likewise; a dense layer counts their causal half only.
    """
    length = length or config.context_length
    dense = parameters(config) - config.context_length * config.n_embd
    seen = sum(seen_tokens(config, layer, length) for layer in range(config.n_layer))
    return 6.0 * dense + 12.0 * config.attention_width * seen


def seen_tokens(config: GPTConfig, layer: int, length: int) -> float:
    """Tokens that a token sees in a layer, the mean over rows of `length`: half of it if dense, w (1 - w / 2 length) in
    a band of w, and of a stride s one in s.
    """
    window = min(config.window(layer) or length, length)
    return window * (1 - window / (2 * length)) / config.stride(layer)


def forward_flops_per_token(config: GPTConfig, length: int | None = None) -> float:
    """A third of training: the forward pass alone, the head on every position."""
    return training_flops_per_token(config, length) / 3


def kv_cache_bytes(config: GPTConfig, tokens: int, dtype: str = "float32") -> int:
    """Keys and values of `tokens` tokens in every layer; a banded one needs those of its band only."""
    kept = sum(min(config.window(layer) or tokens, tokens) for layer in range(config.n_layer))
    return 2 * config.attention_width * kept * BYTES[dtype]


def _norm(config: GPTConfig) -> int:
    return config.n_embd * (2 if config.bias else 1)
