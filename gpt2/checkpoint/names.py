"""What a GPT's tensors are called, how they are shaped, in which files they lie. No torch: a reader brings its own.

Ours are GPT-2's names and `nn.Linear` orientation (out, in). GPT-2's Conv1D stores its four matrices a block as
(in, out): they are transposed on the way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from gpt2.errors import UserError
from gpt2.model.config import GPTConfig
from gpt2.runtime import say

CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
MASK_BUFFERS = (".attn.bias", ".attn.masked_bias")  # with the dot: c_attn.bias is no buffer
SCORE = "score.weight"  # a classifier's head, which classifier.py reads
PREFIXES = ("_orig_mod.", "module.", "transformer.")
EXTENDED_WEIGHTS = "weights.safetensors"
PACKED_WEIGHTS = "quantized.safetensors"  # a name that no other reader looks for: it would find random weights


class Stored(Protocol):
    """A tensor of torch's, or one that still lies in its file."""

    @property
    def shape(self) -> Any: ...
    @property
    def T(self) -> Any: ...
    def any(self) -> Any: ...


S = TypeVar("S", bound=Stored)


def expected_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor as stored (vocabulary not padded), in the module's order."""
    width, vocabulary = config.n_embd, config.vocab_size
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (vocabulary, width),
        "wpe.weight": (config.context_length, width),
    }
    parts = {
        "ln_1": (width,),
        "attn.c_attn": (3 * config.attention_width, width),
        "attn.c_proj": (width, config.attention_width),
        "ln_2": (width,),
        "mlp.c_fc": (config.n_inner, width),
        "mlp.c_proj": (width, config.n_inner),
    }
    named = {f"h.{layer}.{part}": shape for layer in range(config.n_layer) for part, shape in parts.items()}
    for name, shape in {**named, "ln_f": (width,)}.items():
        shapes[f"{name}.weight"] = shape
        if config.bias:
            shapes[f"{name}.bias"] = shape[:1]
    if not config.tie_head:
        shapes["lm_head.weight"] = (vocabulary, width)
    if config.head_bias:
        shapes["lm_head.bias"] = (vocabulary,)
    return shapes


def fitting(folder: Path, config: GPTConfig, stored: Iterable[tuple[str, S]]) -> Iterator[tuple[str, S]]:
    """(our name, tensor in our orientation) of each stored tensor that the model has, one at a time.

    After the last one a UserError if some were missing or of a wrong shape; unexpected ones are named on stderr.
    """
    expected = expected_shapes(config)
    found: set[str] = set()
    unexpected: list[str] = []
    wrong: list[str] = []
    biases: list[str] = []
    for stored_name, tensor in stored:
        name = plain_name(stored_name)
        if name.endswith(MASK_BUFFERS) or name == SCORE or (name == "lm_head.weight" and config.tie_head):
            continue
        if name not in expected:
            if config.bias or not name.endswith(".bias"):
                unexpected.append(stored_name)
            elif tensor.any():  # zeros are how HF's form says: no bias
                biases.append(stored_name)
            continue
        tensor = tensor.T if name.endswith(CONV1D) else tensor
        if tuple(tensor.shape) != expected[name]:
            wrong.append(f"{stored_name} {tuple(tensor.shape)} instead of {expected[name]}")
            continue
        found.add(name)
        yield name, tensor
    missing = [name for name in expected if name not in found and not any(name in item for item in wrong)]
    faults = [("missing", missing), ("wrong shape", wrong), ("not zero though bias = false", biases)]
    if missing or wrong or biases:
        parts = [f"{what} {some(names)}" for what, names in faults if names]
        raise UserError(f"{folder}: the weights do not fit config.json: {'; '.join(parts)}")
    if unexpected:
        say(f"{folder}: ignored tensors that are no part of the model: {some(unexpected)}")


def plain_name(name: str) -> str:
    """A stored name without the prefixes that wrappers leave."""
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            if name.startswith(prefix):
                name, stripped = name.removeprefix(prefix), True
    return name


WEIGHT_FILES = ("model.safetensors", EXTENDED_WEIGHTS, "pytorch_model.bin")


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a whole model's weights, in one file or several."""
    return any((folder / name).is_file() or (folder / f"{name}.index.json").is_file() for name in WEIGHT_FILES)


def weight_files(folder: Path) -> list[Path]:
    """safetensors before pytorch_model.bin, whole before sharded; UserError if there is none."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, AttributeError, TypeError):
                raise UserError(f"{index}: damaged: no JSON with a weight_map") from None
            if any(Path(shard).name != shard for shard in shards):
                raise UserError(f"{index}: names a file outside its folder")
            if not shards:
                raise UserError(f"{index}: damaged: it lists no file")
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing:
                raise UserError(f"{index}: missing {some(missing)} beside it")
            return [folder / shard for shard in shards]
    raise UserError(f"{folder}: no weights (looked for model.safetensors, {EXTENDED_WEIGHTS}, pytorch_model.bin)")


def some(names: list[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
