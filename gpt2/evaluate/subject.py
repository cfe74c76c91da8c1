"""Who is asked: the weights that --model names, told apart from others by their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2.api import Model

BLOCK = 1 << 22


def about(model: Model, name: str) -> dict[str, Any]:
    """What results say of a model: its hash is of config.json and the files of weights, in the order of their names,
    and of an adapter's."""
    from gpt2.checkpoint.names import PACKED_WEIGHTS, weight_files
    from gpt2.checkpoint.packed import is_packed
    from gpt2.model.sizes import parameters

    assert model.folder is not None
    files = [model.folder / PACKED_WEIGHTS] if is_packed(model.folder) else weight_files(model.folder)
    adapter = model.adapter.files if model.adapter else []
    return {
        "name": name,
        "sha256": hash_files([model.folder / "config.json", *sorted(files), *adapter]),
        **({"adapter": str(model.adapter.folder)} if model.adapter else {}),
        "tokenizer": model.tokenizer.hash,
        "parameters": parameters(model.config),
        "context_length": model.config.context_length,
        **form(model),
    }


def exact(model: Model) -> Model:
    """The model, read in float32 on a processor where nobody chose a form: figures stand beside published ones."""
    from gpt2.inference.runners.select import choose_path, held_weights

    assert model.folder is not None
    way = choose_path(model.folder, model.device, model.dtype, model.weights, model.kv)
    asked = model.weights != "auto" or model.dtype not in ("auto", "float32")
    if way.device == "cpu" and not asked and not held_weights(model.folder):
        model.weights = "float32"
    return model


def form(model: Model) -> dict[str, str]:
    """In which form the weights are when it reads: what `model.runner` will choose."""
    from gpt2.inference.runners.select import choose_path

    assert model.folder is not None
    way = choose_path(model.folder, model.device, model.dtype, model.weights, model.kv)
    if way.kernels:
        return {"device": "cpu", "weights": way.weights, "kv": model.kv}
    return {"device": way.device, "weights": model.dtype, "kv": model.dtype}


def hash_files(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(BLOCK), b""):
                digest.update(block)
    return digest.hexdigest()
