"""safetensors as mapped numpy arrays, both ways, and headers from strangers."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from gpt2.checkpoint.arrays import ArrayFile, write_arrays
from gpt2.errors import UserError

GOOD = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}


def write(path: Path, header: object, data: bytes = bytes(16)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_every_float_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    tensors = {
        str(dtype): torch.randn(3, 5).to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int32)
    }
    tensors["nothing"], tensors["number"] = torch.zeros(0, 3), torch.tensor(2.5)
    save_torch(tensors, tmp_path / "x.safetensors")
    file = ArrayFile(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        assert np.array_equal(file[name].floats(), tensor.float().numpy())
        assert np.array_equal(file[name].T.floats(), tensor.float().numpy().T)
        assert file[name].shape == tuple(tensor.shape)
        assert file[name].any() == bool(tensor.any())
    assert dict(file).keys() == tensors.keys()


def test_float32_is_not_copied_and_can_be_let_go_and_read_again(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).standard_normal((300, 300)).astype(np.float32)
    save_file({"a": matrix}, tmp_path / "x.safetensors")
    stored = ArrayFile(tmp_path / "x.safetensors")["a"]
    assert np.shares_memory(stored.floats(), stored.raw) and not stored.floats().flags.writeable
    stored.release()
    assert np.array_equal(stored.floats(), matrix)


def test_data_that_lies_askew_is_moved(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", json.dumps(GOOD).encode() + b" ", np.arange(4, dtype="<f4").tobytes())
    floats = ArrayFile(path)["a"].floats()
    assert floats.flags.aligned and floats.tolist() == [[0.0, 1.0], [2.0, 3.0]]


def test_what_is_written_lies_on_cache_lines_and_the_library_reads_it(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "a": np.arange(5, dtype=np.uint8),
        "b": np.arange(33, dtype=np.uint16).reshape(3, 11),
        "c": np.arange(32, dtype=np.float32).reshape(4, 8).T,
    }
    write_arrays(tmp_path / "x.safetensors", arrays, {"format": "mine"})
    theirs = load_file(tmp_path / "x.safetensors")
    file = ArrayFile(tmp_path / "x.safetensors")
    assert file.metadata == {"format": "mine"}
    for name, array in arrays.items():
        assert np.array_equal(theirs[name], array) and np.array_equal(file[name].raw, array)
        assert file.entries[name].begin % 64 == 0 and file[name].raw.ctypes.data % 64 == 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"dtype": "F31"}, "is of type 'F31'"),
    ({"dtype": 7}, "is of type 7"),
    ({"dtype": None}, "is of type None"),
    ({"shape": [2, 3]}, "has 16 bytes, which is not its shape"),
    ({"shape": [2, 2.0]}, "no whole number"),
    ({"shape": [True, 4]}, "no whole number"),
    ({"shape": [-2, -2]}, "no whole number"),
    ({"shape": 4}, "lacks dtype, shape or data_offsets"),
    ({"data_offsets": [0]}, "lacks dtype, shape or data_offsets"),
    ({"data_offsets": [16, 0]}, "has -16 bytes"),
    ({"data_offsets": [4, 20]}, "it ends in a"),
    ({"data_offsets": [0, 2**70]}, "no whole number"),
    ({"shape": [2**30, 2**30], "data_offsets": [0, 2**59]}, "is not its shape"),
]


@pytest.mark.parametrize("change,message", CHANGES)
def test_an_entry_that_does_not_hold_together_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "x.safetensors", {"a": GOOD["a"] | change})
    with pytest.raises(UserError, match=r"x\.safetensors") as caught:
        ArrayFile(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


HEADERS: list[tuple[object, bytes, str]] = [
    (GOOD, bytes(15), "it ends in a"),
    (GOOD, bytes(17), "belong to nothing"),
    (GOOD | {"b": GOOD["a"]}, bytes(16), "begins inside another"),
    (GOOD | {"b": {**GOOD["a"], "data_offsets": [20, 36]}}, bytes(36), "behind a gap"),
    (GOOD | {"__metadata__": {"x": 1}}, bytes(16), "metadata"),
    ([], b"", "no table"),
    ({"a": []}, b"", "lacks"),
    (b"{", b"", "no JSON"),
    (b'{"a": 1, "a": 1}', b"", "twice"),
    (b"\xff", b"", "no JSON"),
    (b"[" * 100_000, b"", "no JSON"),
]


@pytest.mark.parametrize("header,data,message", HEADERS)
def test_a_header_that_does_not_hold_together_is_named(
    tmp_path: Path, header: object, data: bytes, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ArrayFile(write(tmp_path / "x.safetensors", header, data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 9) + b"{}"])
def test_a_file_that_ends_too_soon_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="damaged or not safetensors"):
        ArrayFile(tmp_path / "x.safetensors")


@given(st.binary(max_size=200), st.integers(0, 100), st.integers(0, 255))
def test_any_damage_is_a_user_error_or_does_no_harm(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes, place: int, value: int
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "fuzz.safetensors", GOOD, tail)
    content = bytearray(path.read_bytes())
    content[place % len(content)] = value
    path.write_bytes(content)
    try:
        for _, stored in ArrayFile(path):
            stored.floats().sum()
    except UserError as error:
        assert "\n" not in str(error)
