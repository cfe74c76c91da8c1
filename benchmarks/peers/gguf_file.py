"""GPT-2 as GGUF files for llama.cpp, the quantised ones made by llama.cpp's own quantiser.

The vocabulary is left out ("no_vocab"): the benchmark gives token ids and takes token ids. Tensor names are those of
gguf's MODEL_ARCH.GPT2; the head is tied, so there is no output.weight, and llama.cpp then quantises token_embd as an
output (6 bits in q4_0 and q4_K_M).
"""

from __future__ import annotations

from pathlib import Path

import gguf

from peers.model_folder import Array, read_arrays

FORMATS = {"f32": 0, "bf16": 32, "q8_0": 7, "q4_0": 2, "q4_K_M": 15}  # LLAMA_FTYPE_*
OUTSIDE = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
}
INSIDE = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def write_gguf(folder: Path, path: Path, kind: str = "f32") -> Path:
    """Write the model folder as one GGUF file of `kind` (a key of FORMATS); returns its path."""
    if kind == "f32":
        _write_float32(folder, path)
        return path
    whole = path.with_suffix(".whole.gguf")
    _write_float32(folder, whole)
    quantize(whole, path, kind)
    whole.unlink()
    return path


def quantize(source: Path, target: Path, kind: str) -> None:
    """llama.cpp's quantiser, as its `llama-quantize source target KIND` runs it."""
    import llama_cpp

    from peers.llama import hush

    hush()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FORMATS[kind]
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params):
        raise RuntimeError(f"llama.cpp could not quantise {source} to {kind}")


def stored_name(name: str) -> str:
    """`h.3.attn.c_attn.weight` -> `blk.3.attn_qkv.weight`."""
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("h."):
        return f"{OUTSIDE[stem]}.{kind}"
    _, layer, inner = stem.split(".", 2)
    return f"blk.{layer}.{INSIDE[inner]}.{kind}"


def streamed_bytes(path: Path) -> int:
    """Bytes of weights that one token reads: all but the position table (the token table is the head)."""
    tensors = gguf.GGUFReader(path).tensors
    return sum(int(tensor.n_bytes) for tensor in tensors if not tensor.name.startswith("position_embd"))


def tensor_kinds(path: Path) -> dict[str, str]:
    """Tensor name -> its type in the file, such as Q6_K."""
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def _write_float32(folder: Path, path: Path) -> None:
    config, arrays = read_arrays(folder)
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.n_inner)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_file_type(FORMATS["f32"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    for name, array in arrays.items():
        writer.add_tensor(stored_name(name), _contiguous(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _contiguous(array: Array) -> Array:
    import numpy as np

    return np.ascontiguousarray(array, dtype=np.float32)
