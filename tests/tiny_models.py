"""Real models, only small, and their equals in transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gpt2.checkpoint.hf_config import config_to_hf
from gpt2.checkpoint.native import hf_tensors
from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT
from gpt2.tokenizer.bpe import Tokenizer

BYTES = Tokenizer.bytes_only()  # 256 bytes, each its own id, and end-of-text as 256
TINY = GPTConfig(n_layer=2, n_head=2, n_embd=32, vocab_size=257, context_length=64)
ODD = {
    "untied": {"tie_head": False},
    "head_bias": {"head_bias": True},
    "no_bias": {"bias": False},
    "erf": {"activation": "gelu_erf"},
}


def make(config: GPTConfig = TINY, seed: int = 0, noise: float = 0.1, scale: float = 1.0, **changes: Any) -> GPT:
    """A random model in evaluation mode; biases and norms get noise, as zeros and ones would hide mistakes.

    `scale` enlarges the matrices: a model of the published initialisation hardly looks at its prompt.
    """
    torch.manual_seed(seed)
    module = GPT(replace(config, **changes))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter += noise * torch.randn_like(parameter)
            else:
                parameter *= scale
        if module.config.head_bias:
            module.lm_head.bias[module.config.vocab_size :] = 0.0
    return module.eval()


def state_of(module: GPT) -> dict[str, torch.Tensor]:
    """The parameters as `write_folder` takes them."""
    return {name: tensor.detach() for name, tensor in module.named_parameters()}


def transformers_twin(module: GPT) -> Any:
    """GPT2LMHeadModel with the same weights (a head bias left out: it has none)."""
    import transformers

    values = config_to_hf(replace(module.config, head_bias=False))
    twin = transformers.GPT2LMHeadModel(transformers.GPT2Config(**values, attn_implementation="eager"))
    state = {name: t for name, t in hf_tensors(module.config, state_of(module)) if name != "lm_head.bias"}
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    return twin.eval()


def write_model(folder: Path, module: GPT | None = None, tokenizer: Tokenizer = BYTES) -> Path:
    """A model folder that `gpt2.load` reads."""
    from gpt2.checkpoint.native import write_folder

    module = module or make()
    write_folder(folder, module.config, state_of(module), tokenizer)
    return folder
