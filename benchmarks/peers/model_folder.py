"""A model folder of ours as plain arrays, for the writers of other formats; and the 124M shape with random weights."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from gpt2.checkpoint.hf_config import read_config
from gpt2.checkpoint.native import read_weights, write_folder
from gpt2.model.config import GPTConfig
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.tokenizer.files import get_tokenizer, load_tokenizer

Array = np.ndarray
HERE = Path(__file__).resolve()


def read_arrays(folder: Path) -> tuple[GPTConfig, dict[str, Array]]:
    """The config and the float32 tensors under our names: `nn.Linear` orientation (out, in), no padding rows.

    Only what every peer can express passes: GPT-2 itself, with a tied head and biases.
    """
    config = read_config(folder)
    assert config.tie_head and config.bias and not config.head_bias, "the peers know GPT-2 as it was published"
    assert config.activation == "gelu_tanh" and config.attention_width == config.n_embd
    arrays = {name: tensor.numpy() for name, tensor in read_weights(folder, config).items()}
    arrays["wte.weight"] = arrays["wte.weight"][: config.vocab_size]
    return config, arrays


def gpt2_tokenizer() -> Tokenizer:
    """GPT-2's vocabulary: from the folder of test data where there is one, else as `gpt2` finds it."""
    assets = Path(os.environ.get("GPT2_ASSETS", HERE.parents[3] / "shared" / "assets")) / "gpt2-vocab"
    return load_tokenizer(assets) if assets.is_dir() else get_tokenizer("gpt2")


def write_random(folder: Path, config: GPTConfig | None = None, seed: int = 0) -> Path:
    """A model folder with random weights; GPT-2 124M by default. Returns the folder."""
    import torch

    from gpt2.model.gpt import GPT

    torch.manual_seed(seed)
    module = GPT(config or GPTConfig())
    write_folder(folder, module.config, {name: t.detach() for name, t in module.named_parameters()}, gpt2_tokenizer())
    return folder


def streamed_bytes(folder: Path, kind: str) -> int:
    """Bytes of weights that one token reads: every matrix once in `kind`, an int8 row with a float32 scale."""
    _, arrays = read_arrays(folder)
    each = {"float32": 4, "bfloat16": 2, "int8": 1}[kind]
    total = 0
    for name, array in arrays.items():
        if array.ndim == 2 and name != "wpe.weight":
            total += each * array.size + (4 * len(array) if kind == "int8" else 0)
        elif array.ndim == 1:
            total += (2 if kind == "bfloat16" else 4) * array.size
    return total
