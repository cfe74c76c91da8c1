"""A model in packed weights: made from a float folder, written as a folder of its own, read back mapped. No torch.

A packed folder holds config.json (with a key that names the format), quantized.safetensors and the tokenizer's files.
Every matrix lies there as `model/quant.py` says, under its own name and, scales, that name and `.scales`; the norms'
weights, biases and positions stay float32. In int8 and int4 channels are evened out (`equalise.py`), so that norms and
matrices are the model's own only together. No other program looks for a file of that name, so none finds a GPT-2 there
and fills it with random weights.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpt2 import atomic
from gpt2.checkpoint.arrays import PADDING, ArrayFile, Stored, damaged, write_arrays
from gpt2.checkpoint.equalise import Equalised
from gpt2.checkpoint.hf_config import config_to_hf, read_config
from gpt2.checkpoint.names import PACKED_WEIGHTS, expected_shapes, fitting, weight_files
from gpt2.errors import UserError, did_you_mean
from gpt2.model import quant
from gpt2.model.config import GPTConfig
from gpt2.model.quant import FORMATS, GROUP, Packed
from gpt2.runtime import check_jit, say

if TYPE_CHECKING:
    from gpt2.checkpoint.adapters import Adapter
    from gpt2.tokenizer.bpe import Tokenizer

KEY = "packed_weights"  # of config.json
VERSION = 1
Floats = npt.NDArray[np.float32]


@dataclass
class PackedModel:
    """All of a model, as the processor's runner reads it.

    `matrices` are the blocks' four each under their names, "lm_head.weight" (also of a tied model, whose look-up reads
    it too), and "wte.weight" where look-up has a matrix of its own: untied models, and `int4-head`. `vectors` are
    the rest in float32, "wpe.weight" (T, C) among them; a model without biases has none here.
    """

    config: GPTConfig
    weights: str  # one of FORMATS
    matrices: dict[str, Packed] = field(default_factory=dict)
    vectors: dict[str, Floats] = field(default_factory=dict)
    group: int = GROUP  # columns that share a scale in its int8 matrices
    factors: dict[str, Floats] = field(default_factory=dict)  # norm -> what its output was divided by (equalise.py)

    @property
    def nbytes(self) -> int:
        return sum(m.nbytes for m in self.matrices.values()) + sum(v.nbytes for v in self.vectors.values())


def pack_folder(
    folder: Path, config: GPTConfig, weights: str = "int8", group: int = GROUP, adapter: Adapter | None = None
) -> PackedModel:
    """Pack the float weights of a folder, an adapter folded into them, holding no more than the result and one tensor.

    safetensors are read without torch, pytorch_model.bin with it. UserError for what does not fit config.json.
    """
    merged = adapter.merged if adapter else lambda name, weight: weight
    if weight_files(folder)[0].suffix == ".safetensors":
        tensors = dict(fitting(folder, config, _mapped(folder)))
        read = lambda name: merged(name, tensors[name].floats())  # noqa: E731
        return _pack(config, weights, group, str(folder), read, _releaser(tensors))
    from gpt2.checkpoint.native import read_weights

    state = read_weights(folder, config)
    return _pack(config, weights, group, str(folder), lambda name: merged(name, state[name].numpy()))


def pack_state(
    config: GPTConfig, state: Mapping[str, npt.NDArray[Any]], weights: str = "int8", group: int = GROUP
) -> PackedModel:
    """Pack tensors under our names, in `nn.Linear` orientation; rows that pad the vocabulary are left out."""
    return _pack(config, weights, group, "the model", lambda name: np.asarray(state[name], np.float32))


def _pack(
    config: GPTConfig,
    weights: str,
    group: int,
    origin: str,
    read: Callable[[str], Floats],
    release: Callable[[str], None] = lambda name: None,
) -> PackedModel:
    check_format(weights)
    model = PackedModel(config, weights, group=group)
    if weights not in ("float32", "bfloat16"):
        read = evened = Equalised(config, read)
        model.factors = evened.found
    for name, (rows, _) in matrix_shapes(config, weights).items():
        source = "wte.weight" if name == "lm_head.weight" and config.tie_head else name
        try:
            model.matrices[name] = pack_matrix(read(source)[:rows], kind_of(name, weights), group)
        except UserError as error:
            raise UserError(f"{origin}: {source} {error}") from None
        release(source)
    for name, shape in vector_shapes(config).items():
        model.vectors[name] = np.array(read(name)[: shape[0]], np.float32)
        release(name)
    return model


def pack_matrix(matrix: Floats, kind: str, group: int = GROUP) -> Packed:
    """W (N, K), or a transposed view of (K, N), in its packed form: fast where numba is, else the slow plain way."""
    fast = _fast_pack()
    if fast is None:
        return quant.pack(matrix, kind, group)
    rows, columns = matrix.shape
    packed = quant.empty(rows, columns, kind, group)
    clips = np.array(quant.CLIPS, np.float32)
    if not fast(matrix, kind, packed.data, packed.scales, packed.group, clips, _threads()):
        raise UserError("holds numbers that are not finite; such weights cannot be packed")
    return packed


@functools.cache
def _fast_pack() -> Callable[..., bool] | None:
    try:
        check_jit()
        from gpt2.kernels.pack import pack
    except Exception as error:  # a numba that does not fit numpy fails in many ways
        say(
            f"numba cannot be used ({type(error).__name__}: {error}); weights are packed without it, which takes longer"
        )
        return None
    return pack


def _threads() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def kind_of(name: str, weights: str) -> str:
    """The kind of one matrix in a model of that format."""
    if weights == "int4" and name in ("lm_head.weight", "wte.weight"):
        return "int8"
    if weights == "int4-head":
        return "int8" if name == "wte.weight" else "int4"
    return weights


def matrix_shapes(config: GPTConfig, weights: str) -> dict[str, tuple[int, int]]:
    """Name -> (rows, columns) of the packed matrices."""
    shapes = {name: s for name, s in expected_shapes(config).items() if len(s) == 2 and name != "wpe.weight"}
    shapes["lm_head.weight"] = shapes["wte.weight"]
    if config.tie_head and weights != "int4-head":
        del shapes["wte.weight"]
    return {name: (shape[0], shape[1]) for name, shape in shapes.items()}


def vector_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what stays float32."""
    return {name: s for name, s in expected_shapes(config).items() if len(s) == 1 or name == "wpe.weight"}


def check_format(weights: str) -> None:
    """UserError for a name that is no format of weights."""
    if weights not in FORMATS:
        raise UserError(
            f"--weights {weights}: unknown{did_you_mean(weights, FORMATS)}; choose from {', '.join(FORMATS)}"
        )


def _mapped(folder: Path) -> Iterator[tuple[str, Stored]]:
    for path in weight_files(folder):
        yield from ArrayFile(path)


def _releaser(tensors: Mapping[str, Stored]) -> Callable[[str], None]:
    return lambda name: tensors[name].release()


def unpack_state(model: PackedModel) -> Iterator[tuple[str, Floats]]:
    """Our names and tensors in float32, one at a time, as a module loads them; the vocabulary is not padded."""
    yield from model.vectors.items()
    for name, matrix in model.matrices.items():
        if model.config.tie_head and name == "wte.weight":
            continue  # the copy that int4-head keeps for look-up
        yield "wte.weight" if model.config.tie_head and name == "lm_head.weight" else name, quant.unpack(matrix)


def write_packed(folder: Path, model: PackedModel, tokenizer: Tokenizer | None = None) -> None:
    """Write a packed folder, config.json last; UserError where float weights lie there already."""
    folder.mkdir(parents=True, exist_ok=True)
    for other in ("model.safetensors", "weights.safetensors", "pytorch_model.bin"):
        if (folder / other).exists() or (folder / f"{other}.index.json").exists():
            raise UserError(f"{folder}: holds a model in {other}; packed weights need a folder of their own")
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, matrix in model.matrices.items():
        arrays[name] = matrix.data
        if matrix.scales is not None:
            arrays[f"{name}.scales"] = matrix.scales
    declared = {"version": VERSION, "weights": model.weights, "group": model.group}
    (folder / "config.json").unlink(missing_ok=True)  # of another model: never beside weights that are not its own
    write_arrays(folder / PACKED_WEIGHTS, arrays | model.vectors, {"format": "gpt2-packed"})
    if tokenizer is not None:
        from gpt2.tokenizer.files import save_tokenizer

        save_tokenizer(tokenizer, folder)
    config = config_to_hf(model.config, tokenizer.eot_id if tokenizer else None) | {KEY: declared}
    atomic.write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def read_packed(folder: Path) -> PackedModel:
    """A packed folder; matrices stay in the mapped file until they are read. UserError for what does not fit."""
    config = read_config(folder)
    declared = _declared(folder)
    if declared is None:
        raise UserError(f"{folder}: its weights are not packed; gpt2 quantize makes such a folder")
    model = PackedModel(config, declared["weights"], group=declared["group"])
    try:
        file = ArrayFile(folder / PACKED_WEIGHTS)
    except FileNotFoundError:
        raise UserError(f"{folder}: {PACKED_WEIGHTS} is missing beside config.json") from None
    for name, (rows, columns) in matrix_shapes(config, model.weights).items():
        kind = kind_of(name, model.weights)
        shape, dtype, scales = quant.shapes(rows, columns, kind, model.group)
        data = _take(file, name, shape, dtype)
        steps = None if scales is None else _take(file, f"{name}.scales", scales, np.uint16)
        group = {"int8": model.group, "int4": quant.CHUNK}.get(kind, 0)
        model.matrices[name] = Packed(kind, rows, columns, data, steps, group)
    for name, shape in vector_shapes(config).items():
        model.vectors[name] = _take(file, name, shape, np.float32)
    _refuse_others(file, model)
    return model


def is_packed(folder: Path) -> bool:
    """Whether a model folder holds packed weights."""
    return _declared(folder) is not None


def _declared(folder: Path) -> dict[str, Any] | None:
    """What config.json says of the packing: weights and group, checked; None where it says nothing."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # read_config says it better
    declared = values.get(KEY) if isinstance(values, dict) else None
    if declared is None:
        return None
    where = f"{folder / 'config.json'}: {KEY}"
    if not isinstance(declared, dict) or declared.get("version") != VERSION:
        raise UserError(f"{where}: of a form that this version does not read (it reads version {VERSION})")
    if declared.get("weights") not in FORMATS:
        raise UserError(f"{where}: weights must be one of {', '.join(FORMATS)}")
    group = declared.get("group")
    if type(group) is not int or group < 0 or group % quant.CHUNK:
        raise UserError(f"{where}: group must be a multiple of {quant.CHUNK}, or 0")
    return declared


def _refuse_others(file: ArrayFile, model: PackedModel) -> None:
    """UserError for arrays that config.json knows nothing of: a layer would be left out without a word."""
    known = {*model.matrices, *(f"{name}.scales" for name in model.matrices), *model.vectors}
    others = [name for name in file.entries if name not in known and not name.startswith(PADDING)]
    if others:
        raise UserError(f"{file.path}: {others[0]} is no part of the model that config.json describes; make it again")


def _take(file: ArrayFile, name: str, shape: tuple[int, ...], dtype: type[Any]) -> npt.NDArray[Any]:
    """One array of the file, of the wanted shape; where another program wrote the file, moved to a cache line."""
    if name not in file.entries:
        raise damaged(file.path, f"{name} is missing")
    array = file[name].raw
    if array.shape != shape or array.dtype != dtype:
        raise damaged(file.path, f"{name} is {array.dtype} {array.shape} instead of {np.dtype(dtype)} {shape}")
    if array.ctypes.data % 64 == 0:
        return array
    moved = quant.aligned(shape, dtype)
    moved[:] = array
    return moved
