"""GPT-2 and GPT-3 whole. The public names are loaded on first use, so that `import gpt2` costs nothing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gpt2.errors import UserError

if TYPE_CHECKING:
    from gpt2.api import Model, load
    from gpt2.data.prepare import prepare
    from gpt2.inference.engine import Engine
    from gpt2.inference.sampling import SamplingParams
    from gpt2.model.config import GPTConfig
    from gpt2.model.gpt import GPT
    from gpt2.tokenizer.bpe import Tokenizer
    from gpt2.train.pretrain import pretrain

__version__ = "0.1.0"
__all__ = [
    "Engine",
    "GPT",
    "GPTConfig",
    "Model",
    "SamplingParams",
    "Tokenizer",
    "UserError",
    "__version__",
    "load",
    "prepare",
    "pretrain",
]

# Public name -> module and the name there. `pretrain`, as `gpt2.train` is a package and cannot be a function too.
_WHERE = {
    "Engine": ("gpt2.inference.engine", "Engine"),
    "GPT": ("gpt2.model.gpt", "GPT"),
    "GPTConfig": ("gpt2.model.config", "GPTConfig"),
    "Model": ("gpt2.api", "Model"),
    "SamplingParams": ("gpt2.inference.sampling", "SamplingParams"),
    "Tokenizer": ("gpt2.tokenizer.bpe", "Tokenizer"),
    "load": ("gpt2.api", "load"),
    "prepare": ("gpt2.data.prepare", "prepare"),
    "pretrain": ("gpt2.train.pretrain", "pretrain"),
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'gpt2' has no attribute '{name}'")
    module, attribute = _WHERE[name]
    value = globals()[name] = getattr(importlib.import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
