"""LoRA adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors in a folder. Read without torch.

PEFT 0.21, `LoraConfig` and `save_pretrained`. In its file a matrix of GPT-2's is called
base_model.model.transformer.h.0.attn.c_attn, with .lora_A.weight (r, in) and .lora_B.weight (out, r) behind it: these lie
so for Conv1D too, whose own weight is (in, out), which `fan_in_fan_out` says. Settings that change what a model computes
and that are not ours are refused, also those that PEFT may learn yet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpt2 import atomic
from gpt2.checkpoint.arrays import ArrayFile
from gpt2.checkpoint.names import plain_name
from gpt2.errors import UserError
from gpt2.model.config import GPTConfig
from gpt2.model.lora_config import TARGETS, LoRAConfig, check_fit, tensor_shapes

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2.tokenizer.bpe import Tokenizer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Adapter:
    """`config`, the tensors `state` ("h.0.attn.c_attn.lora_A" (r, in), "...lora_B" (out, r), float32), and what the
    adapter's folder says of its base: a folder or a Hugging Face id, or nothing."""

    config: LoRAConfig
    state: Mapping[str, Floats]
    base: str
    folder: Path | None = None

    @property
    def targets(self) -> list[str]:
        """The matrices that it changes: `h.0.attn.c_attn`."""
        return [name.removesuffix(".lora_A") for name in self.state if name.endswith(".lora_A")]

    def check(self, model: GPTConfig) -> None:
        """UserError, one line, unless it fits a base of this shape."""

    def delta(self, target: str) -> Floats:
        """What it adds to that matrix (out, in)."""
        product: Floats = self.state[f"{target}.lora_B"] @ self.state[f"{target}.lora_A"]
        return product * np.float32(self.config.scale)

    def merged(self, name: str, weight: Floats) -> Floats:
        """A tensor of the base by its name (`h.0.attn.c_attn.weight`), in `nn.Linear` orientation, with the adapter in
        it; one that the adapter does not change comes back as it is."""
        target = name.removesuffix(".weight")
        return weight + self.delta(target) if f"{target}.lora_A" in self.state else weight


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no model of its own."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_adapter(folder: Path) -> Adapter:
    """An adapter's two files; UserError for what is damaged, or set in a way that is not supported."""
    raise NotImplementedError


def write_adapter(
    folder: Path,
    config: LoRAConfig,
    state: Mapping[str, Tensor],
    base: str,
    tokenizer: Tokenizer | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write PEFT's two files, a README.md of `notes`, and the tokenizer's files; each is replaced atomically.

    `state` as `lora_parameters` names it. `base` is a folder or a Hugging Face id: PEFT's AutoPeftModel and our
    `load` look for the base there.
    """
    raise NotImplementedError
