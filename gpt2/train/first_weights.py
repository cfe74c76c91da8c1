"""A model on a mesh gets its first weights part by part: no process ever holds more than one block of it whole.

They are those that a lone process has, drawn from the same seed in the same order, or read from the same folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from gpt2.checkpoint.native import weight_reader
from gpt2.distributed.shards import layout
from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT, initialise
from gpt2.model.grow import grower
from gpt2.train.entries import entries

Source = Callable[[str, torch.Size], Tensor]  # a parameter's name, the fused c_attn's among them, and shape -> values
Fill = Callable[[nn.Module, str], None]


def drawn(config: GPTConfig) -> Source:
    """From the processor's generator, as `GPT` draws them: asked for in the order of its parameters."""
    skip_torchs_own(config)

    def draw(name: str, shape: torch.Size) -> Tensor:
        tensor = torch.empty(shape)
        initialise(name, tensor, config)
        return tensor

    return draw


def skip_torchs_own(config: GPTConfig) -> None:
    """Draw and drop what torch's layers draw when they are made, before `GPT` draws its weights over them."""
    for module in skeleton(config).modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.to_empty(device="cpu")
            module.reset_parameters()
            module.to("meta")


def stored(folder: Path, config: GPTConfig, vocab_size: int = 0, seed: int = 0) -> Source:
    """From a model folder of this shape; `vocab_size`, if it is more, and `seed` are `grow_vocabulary`'s."""
    read, grown = weight_reader(folder, config), grower(config, vocab_size, seed)
    return lambda name, shape: grown(name, read(name))


def unset(name: str, shape: torch.Size) -> Tensor:
    """For a run whose checkpoint is read next."""
    return torch.zeros(shape)


def skeleton(config: GPTConfig) -> GPT:
    """The model without memory."""
    with torch.device("meta"):
        return GPT(config)


def filler(config: GPTConfig, source: Source) -> Fill:
    """What gives a part of a `skeleton`, cut up or not, its values: `fill(part, "h.0.")`."""
    shapes = {name: parameter.shape for name, parameter in skeleton(config).named_parameters()}

    def fill(part: nn.Module, prefix: str) -> None:
        for name, shape in shapes.items():
            if name.startswith(prefix):
                own = dict(part.named_parameters(prefix=prefix.removesuffix(".")))
                values = source(name, shape)
                for entry, value in [(name, values)] if name in own else entries(name, values):
                    put(part, entry.removeprefix(prefix), value)

    return fill


def put(part: nn.Module, name: str, value: Tensor) -> None:
    """A parameter in place of the one without memory; of a distributed one, what this process has of it."""
    holder, _, leaf = name.rpartition(".")
    module = part.get_submodule(holder)
    lies = layout(getattr(module, leaf))
    if lies is not None:
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value, lies.mesh, lies.placements, src_data_rank=None)
    setattr(module, leaf, nn.Parameter(value.clone() if lies is None else value))
