"""Every published size by name, and small ones. GPT-2 Table 2; GPT-3 Table 2.1, exactly as printed."""

from __future__ import annotations

from typing import Any

from gpt2.config import to_tree
from gpt2.errors import UserError, did_you_mean
from gpt2.model.config import GPTConfig


def _gpt2(n_layer: int, n_head: int, n_embd: int) -> GPTConfig:
    return GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd)


def _gpt3(n_layer: int, n_head: int, n_embd: int, head_dim: int) -> GPTConfig:
    return GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd, head_dim=head_dim, context_length=2048)


PRESETS: dict[str, GPTConfig] = {
    "gpt2-124m": _gpt2(12, 12, 768),
    "gpt2-355m": _gpt2(24, 16, 1024),
    "gpt2-774m": _gpt2(36, 20, 1280),
    "gpt2-1558m": _gpt2(48, 25, 1600),
    "gpt3-125m": _gpt3(12, 12, 768, 64),
    "gpt3-350m": _gpt3(24, 16, 1024, 64),
    "gpt3-760m": _gpt3(24, 16, 1536, 96),
    "gpt3-xl": _gpt3(24, 24, 2048, 128),  # heads' width 3072 on 2048, as printed: 1.52B, not the printed 1.3B
    "gpt3-xl-2048": _gpt3(24, 16, 2048, 128),  # the width that the printed 1.3B fits
    "gpt3-2.7b": _gpt3(32, 32, 2560, 80),
    "gpt3-6.7b": _gpt3(32, 32, 4096, 128),
    "gpt3-13b": _gpt3(40, 40, 5140, 128),  # heads' width 5120 on 5140, as printed
    "gpt3-175b": _gpt3(96, 96, 12288, 128),
    "tiny": GPTConfig(n_layer=2, n_head=2, n_embd=64, context_length=128),
    "small": GPTConfig(n_layer=4, n_head=4, n_embd=256, context_length=256),
    "medium": GPTConfig(n_layer=6, n_head=6, n_embd=384, context_length=512),
}

HUB_IDS = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
}


def preset(name: str, **changes: Any) -> GPTConfig:
    """The config of a published or small size, with fields changed; UserError names the nearest preset."""
    return GPTConfig(**preset_tree(name) | changes)


def preset_tree(name: str) -> dict[str, Any]:
    """The preset's fields as a mapping, without the two that follow from the others, so that these may change."""
    if name not in PRESETS:
        raise UserError(f"--preset {name}: unknown{did_you_mean(name, PRESETS)}; there are {', '.join(PRESETS)}")
    config = PRESETS[name]
    tree = to_tree(config)
    if config.attention_width == config.n_embd:
        del tree["head_dim"]
    if config.n_inner == 4 * config.n_embd:
        del tree["n_inner"]
    return tree
