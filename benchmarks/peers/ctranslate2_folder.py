"""GPT-2 as a CTranslate2 folder. Its vocabulary is the token ids as text: the benchmark gives ids and takes ids."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from ctranslate2.specs import common_spec, transformer_spec

from peers.model_folder import Array, read_arrays

FORMATS = ("float32", "int8")


def write_ctranslate2(folder: Path, out: Path, kind: str = "float32") -> Path:
    """Write the model folder as a CTranslate2 folder of `kind`; returns its path."""
    config, arrays = read_arrays(folder)
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        config.n_layer, config.n_head, pre_norm=True, activation=common_spec.Activation.GELUTanh
    )
    fill(spec.decoder, arrays)
    spec.register_vocabulary([str(token) for token in range(config.vocab_size)])
    last = str(config.vocab_size - 1)
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = last
    spec.config.layer_norm_epsilon = config.norm_eps
    spec.validate()
    spec.optimize(quantization=None if kind == "float32" else kind)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    spec.save(str(out))
    return out


def fill(decoder: transformer_spec.TransformerDecoderSpec, arrays: dict[str, Array]) -> None:
    """Put our tensors into CTranslate2's places."""
    decoder.scale_embeddings = False
    decoder.embeddings.weight = arrays["wte.weight"]
    decoder.position_encodings.encodings = arrays["wpe.weight"]
    decoder.projection.weight = arrays["wte.weight"]
    _norm(decoder.layer_norm, "ln_f", arrays)
    for index, layer in enumerate(decoder.layer):
        block = f"h.{index}"
        _norm(layer.self_attention.layer_norm, f"{block}.ln_1", arrays)
        _linear(layer.self_attention.linear[0], f"{block}.attn.c_attn", arrays)
        _linear(layer.self_attention.linear[1], f"{block}.attn.c_proj", arrays)
        _norm(layer.ffn.layer_norm, f"{block}.ln_2", arrays)
        _linear(layer.ffn.linear_0, f"{block}.mlp.c_fc", arrays)
        _linear(layer.ffn.linear_1, f"{block}.mlp.c_proj", arrays)


def _linear(spec: common_spec.LinearSpec, name: str, arrays: dict[str, Array]) -> None:
    spec.weight = np.ascontiguousarray(arrays[f"{name}.weight"])
    spec.bias = arrays[f"{name}.bias"]


def _norm(spec: common_spec.LayerNormSpec, name: str, arrays: dict[str, Array]) -> None:
    spec.gamma, spec.beta = arrays[f"{name}.weight"], arrays[f"{name}.bias"]
