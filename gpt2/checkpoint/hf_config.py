"""config.json: transformers' GPT2Config to our GPTConfig and back.

What their GPT-2 cannot express goes into extra keys under a model_type of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2.errors import UserError
from gpt2.model.config import GPTConfig

EXTENDED = "gpt2-extended"
EXTRA = ("head_dim", "head_bias", "attention_pattern", "band_width", "attention_stride")
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
}


def read_config(folder: Path) -> GPTConfig:
    """config.json of a GPT-2-family folder; UserError names what is missing or not supported."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (folder / "adapter_config.json").is_file():
            raise UserError(f"{folder}: an adapter, no whole model; gpt2 merge makes one of it") from None
        raise UserError(f"{folder}: not a model folder, it has no config.json") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a table of settings")
    return config_from_hf(values, str(path))


def config_from_hf(values: Mapping[str, Any], origin: str) -> GPTConfig:
    """Translate the keys of transformers' GPT2Config (and our extra ones) into a GPTConfig."""
    if values.get("model_type", "gpt2") not in ("gpt2", EXTENDED):
        raise UserError(
            f"{origin}: model_type is '{values['model_type']}'; only GPT-2's and GPT-3's architecture loads"
        )
    activation = values.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise UserError(f"{origin}: activation_function '{activation}' is not supported; gelu_new and gelu are")
    if not values.get("scale_attn_weights", True):
        raise UserError(f"{origin}: scale_attn_weights = false is not supported")
    if values.get("add_cross_attention"):
        raise UserError(f"{origin}: cross attention is not part of a decoder on its own")
    try:
        known = {
            "n_layer": values["n_layer"],
            "n_head": values["n_head"],
            "n_embd": values["n_embd"],
            "vocab_size": values["vocab_size"],
            "context_length": values.get("n_positions") or values["n_ctx"],
        }
    except KeyError as error:
        raise UserError(f"{origin}: key {error} is missing") from None
    ours = {name: values[name] for name in ("bias", *EXTRA) if name in values}
    whole = {name: ours[name] for name in ("head_dim", "band_width", "attention_stride") if name in ours}
    for key, number in (known | whole).items():
        if type(number) is not int:
            raise UserError(f"{origin}: {key} = {number!r}: must be a whole number")
    return GPTConfig(
        **known,
        n_inner=values.get("n_inner") or 0,
        dropout=float(values.get("resid_pdrop", 0.1)),
        norm_eps=values.get("layer_norm_epsilon", 1e-5),
        activation=ACTIVATIONS[activation],  # type: ignore[arg-type]
        tie_head=values.get("tie_word_embeddings", True),
        init_std=values.get("initializer_range", 0.02),
        scale_by_layer=bool(values.get("scale_attn_by_inverse_layer_idx", False)),
        **ours,
    )


def config_to_hf(config: GPTConfig, eot_id: int | None = None) -> dict[str, Any]:
    """The config.json of a folder; extra keys only where HF's own cannot say it."""
    values: dict[str, Any] = {
        "model_type": "gpt2" if hf_can_express(config) else EXTENDED,
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_inner": None if config.n_inner == 4 * config.n_embd else config.n_inner,
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "vocab_size": config.vocab_size,
        "activation_function": "gelu_new" if config.activation == "gelu_tanh" else "gelu",
        "layer_norm_epsilon": config.norm_eps,
        "initializer_range": config.init_std,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "tie_word_embeddings": config.tie_head,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": config.scale_by_layer,
        "reorder_and_upcast_attn": False,
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "torch_dtype": "float32",
    }
    if not config.bias:
        values["bias"] = False  # HF reads zero biases; we read none
    if not hf_can_express(config):
        del values["architectures"]
        extra = {name: getattr(config, name) for name in EXTRA}
        values |= extra | {"attention_pattern": list(config.attention_pattern)}
    return values


def hf_can_express(config: GPTConfig) -> bool:
    """Whether transformers' GPT2LMHeadModel computes the same function from the same folder."""
    return config.attention_width == config.n_embd and not config.head_bias and config.is_dense
