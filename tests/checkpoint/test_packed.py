"""Packed folders: made from float ones or from tensors, written, mapped; refused where they do not fit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tiny_models import BYTES, ODD, make, state_of, write_model

from gpt2.checkpoint import packed
from gpt2.checkpoint.hf_config import read_config
from gpt2.checkpoint.packed import PackedModel, is_packed, pack_folder, pack_state, read_packed, write_packed
from gpt2.errors import UserError
from gpt2.model import quant
from gpt2.tokenizer.files import load_tokenizer

FORMATS = pytest.mark.parametrize("weights", quant.FORMATS)
SHAPES = pytest.mark.parametrize("changes", [{}, *ODD.values(), {"n_inner": 100, "head_dim": 24}])


def assert_same(one: PackedModel, other: PackedModel) -> None:
    assert (one.config, one.weights, one.group) == (other.config, other.weights, other.group)
    assert one.matrices.keys() == other.matrices.keys() and one.vectors.keys() == other.vectors.keys()
    for name, matrix in one.matrices.items():
        theirs = other.matrices[name]
        assert (matrix.kind, matrix.rows, matrix.columns, matrix.group) == (
            theirs.kind,
            theirs.rows,
            theirs.columns,
            theirs.group,
        )
        assert np.array_equal(matrix.data, theirs.data)
        assert (matrix.scales is None and theirs.scales is None) or np.array_equal(matrix.scales, theirs.scales)
    for name, vector in one.vectors.items():
        assert np.array_equal(vector, other.vectors[name])


def packed_of(folder: Path, weights: str = "int8", **settings: Any) -> PackedModel:
    return pack_folder(folder, read_config(folder), weights, **settings)


@SHAPES
@FORMATS
def test_a_folder_its_state_and_what_is_written_are_the_same_model(
    tmp_path: Path, weights: str, changes: dict[str, Any]
) -> None:
    module = make(**changes)
    model = packed_of(write_model(tmp_path / "float", module), weights)
    state = {name: tensor.numpy() for name, tensor in state_of(module).items()}
    assert_same(model, pack_state(module.config, state, weights))
    write_packed(tmp_path / "packed", model, BYTES)
    assert_same(read_packed(tmp_path / "packed"), model)
    assert load_tokenizer(tmp_path / "packed").vocab_size == 257
    assert is_packed(tmp_path / "packed") and not is_packed(tmp_path / "float")


def test_each_format_has_its_kinds_of_matrices(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    kinds = {}
    for weights in quant.FORMATS:
        model = packed_of(folder, weights)
        kinds[weights] = {name: matrix.kind for name, matrix in model.matrices.items() if not name.startswith("h.1")}
        assert {kinds[weights][name] for name in kinds[weights] if name.startswith("h.0")} == {weights.split("-")[0]}
    assert kinds["int4"]["lm_head.weight"] == "int8" and "wte.weight" not in kinds["int4"]
    assert kinds["int4-head"]["lm_head.weight"] == "int4" and kinds["int4-head"]["wte.weight"] == "int8"
    assert kinds["int8"]["lm_head.weight"] == "int8" and "wte.weight" not in kinds["int8"]


def test_an_untied_model_keeps_both_of_its_large_matrices(tmp_path: Path) -> None:
    module = make(tie_head=False)
    model = packed_of(write_model(tmp_path, module), "float32")
    for name in ("wte", "lm_head"):
        weight = getattr(module, name).weight[:257].detach().numpy()
        assert np.array_equal(quant.unpack(model.matrices[f"{name}.weight"]), weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_packed_as_their_float32_values(tmp_path: Path, dtype: torch.dtype) -> None:
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    folder = write_model(tmp_path)
    tensors = {name: tensor.to(dtype) for name, tensor in load_torch(folder / "model.safetensors").items()}
    save_torch({name: tensor.float() for name, tensor in tensors.items()}, folder / "model.safetensors")
    exact = packed_of(folder)
    save_torch(tensors, folder / "model.safetensors")
    assert_same(packed_of(folder), exact)


def test_sharded_and_pickled_weights_are_packed_too(tmp_path: Path) -> None:
    from safetensors.torch import load_file as load_torch

    whole = packed_of(write_model(tmp_path / "a"))
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    halves = [dict(sorted(tensors.items())[::2]), dict(sorted(tensors.items())[1::2])]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for number, half in enumerate(halves):
        save_file(half, tmp_path / "b" / f"part{number}.safetensors")
    places = {name: f"part{number}.safetensors" for number, half in enumerate(halves) for name in half}
    (tmp_path / "b" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (tmp_path / "b" / "model.safetensors").unlink()
    assert_same(packed_of(tmp_path / "b"), whole)
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    torch.save(load_torch(tmp_path / "a" / "model.safetensors"), tmp_path / "c" / "pytorch_model.bin")
    (tmp_path / "c" / "model.safetensors").unlink()
    assert_same(packed_of(tmp_path / "c"), whole)


def test_without_numba_the_same_bytes_come_more_slowly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path)
    fast = packed_of(folder, "int4")
    monkeypatch.setattr(packed, "_fast_pack", lambda: None)
    assert_same(packed_of(folder, "int4"), fast)


def test_packing_and_reading_import_no_torch(tmp_path: Path) -> None:
    write_model(tmp_path / "float")
    code = (
        "import sys; from pathlib import Path; from gpt2.checkpoint.packed import *\n"
        f"a, b = Path({str(tmp_path / 'float')!r}), Path({str(tmp_path / 'packed')!r})\n"
        "write_packed(b, pack_folder(a, read_config(a))); read_packed(b)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@FORMATS
def test_transformers_refuses_a_packed_folder(tmp_path: Path, weights: str) -> None:
    import transformers

    model = packed_of(write_model(tmp_path / "float"), weights)
    write_packed(tmp_path / "packed", model, BYTES)
    for reader in (transformers.GPT2LMHeadModel, transformers.AutoModelForCausalLM, transformers.AutoModel):
        with pytest.raises(OSError, match=r"model\.safetensors"):
            reader.from_pretrained(tmp_path / "packed")


def test_packed_weights_are_not_mixed_with_float_ones(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    model = packed_of(folder)
    with pytest.raises(UserError, match=r"holds a model in model.safetensors"):
        write_packed(folder, model)
    write_packed(tmp_path / "packed", model)
    write_model(tmp_path / "packed")
    assert not is_packed(tmp_path / "packed") and not (tmp_path / "packed" / "quantized.safetensors").exists()


def test_a_file_that_the_library_wrote_again_is_read(tmp_path: Path) -> None:
    model = packed_of(write_model(tmp_path / "float"))
    write_packed(tmp_path / "packed", model)
    path = tmp_path / "packed" / "quantized.safetensors"
    save_file(load_file(path), path, metadata={"some": "more"})
    again = read_packed(tmp_path / "packed")
    assert_same(again, model)
    assert all(matrix.data.ctypes.data % 64 == 0 for matrix in again.matrices.values())


def test_weights_that_do_not_fit_the_config_are_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.1.ln_2.bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"do not fit config.json: missing h.1.ln_2.bias"):
        packed_of(folder)


def test_a_packed_layer_that_the_config_leaves_out_is_named(tmp_path: Path) -> None:
    write_packed(tmp_path, packed_of(write_model(tmp_path / "float")), BYTES)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_layer": config["n_layer"] - 1}))
    with pytest.raises(UserError, match=r"quantized\.safetensors: h\.\d\..* is no part of the model"):
        read_packed(tmp_path)


def test_numbers_that_are_not_finite_are_named(tmp_path: Path) -> None:
    module = make()
    with torch.no_grad():
        module.h[1].mlp.c_fc.weight[3, 3] = float("nan")
    with pytest.raises(UserError, match=r"h.1.mlp.c_fc.weight holds numbers that are not finite"):
        packed_of(write_model(tmp_path, module))


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--weights int9: unknown \(did you mean 'int8'\?\)"):
        packed_of(write_model(tmp_path), "int9")


@pytest.mark.parametrize(
    "declared,message",
    [
        ({"version": 2}, "reads version 1"),
        ("int8", "reads version 1"),
        ({"weights": "int3"}, "weights must be one of"),
        ({"group": 32}, "multiple of 64"),
        ({"group": True}, "multiple of 64"),
        ({"weights": "int4"}, "h.0.attn.c_attn.weight is uint8"),
    ],
)
def test_a_damaged_declaration_is_named(tmp_path: Path, declared: Any, message: str) -> None:
    write_packed(tmp_path / "packed", packed_of(write_model(tmp_path / "float")))
    path = tmp_path / "packed" / "config.json"
    values = json.loads(path.read_text())
    values["packed_weights"] = values["packed_weights"] | declared if isinstance(declared, dict) else declared
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        read_packed(tmp_path / "packed")


def test_a_folder_without_packed_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its weights are not packed"):
        read_packed(write_model(tmp_path / "float"))
    write_packed(tmp_path / "packed", packed_of(tmp_path / "float"))
    (tmp_path / "packed" / "quantized.safetensors").unlink()
    with pytest.raises(UserError, match=r"is missing beside config\.json"):
        read_packed(tmp_path / "packed")
