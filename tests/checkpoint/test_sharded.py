"""Tensors in the form of torch.distributed.checkpoint: they come back, and a stranger's folder runs no code."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import Metadata

from gpt2.checkpoint.pieces import pieces, snapshot
from gpt2.checkpoint.sharded import METADATA, Reader, Stored, load, load_whole, names, save
from gpt2.errors import UserError

SHAPES = {"matrix": (3, 4), "scalar": (), "row": (7,), "cube": (2, 3, 4)}


def table(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: torch.randn(shape).to(dtype) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    folder, tensors = tmp_path_factory.mktemp("saved") / "state", table()
    save(pieces(tensors), folder)
    return folder, tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64])
def test_tensors_come_back_to_the_bit_into_memory_that_is_there(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = table(dtype)
    save(pieces(tensors), tmp_path)
    back = {name: torch.ones_like(tensor) for name, tensor in tensors.items()}
    places = {name: tensor.data_ptr() for name, tensor in back.items()}
    load(back, tmp_path)
    assert all(torch.equal(back[name], tensors[name]) for name in SHAPES)
    assert places == {name: tensor.data_ptr() for name, tensor in back.items()}


def test_a_part_is_loaded_by_its_prefix(tmp_path: Path) -> None:
    tensors = {f"{part}.{name}": tensor for part in ("a", "b") for name, tensor in table().items()}
    save(pieces(tensors), tmp_path)
    assert names(tmp_path) == set(tensors)
    assert {name: tensor.shape for name, tensor in load_whole(tmp_path, "b.").items()} == {
        name: torch.Size(shape) for name, shape in SHAPES.items()
    }


def test_tensors_are_read_when_they_are_asked_for_a_block_at_a_time_and_the_list_of_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {f"w.h.{block}.{name}": tensor for block in range(3) for name, tensor in table().items()}
    tensors["w.wte.weight"] = torch.randn(4, 4)
    save(pieces(tensors), tmp_path)
    lists, reads = [], []
    listed, read = Reader.read_metadata, Reader.read_data
    monkeypatch.setattr(Reader, "read_metadata", lambda self: lists.append(1) or listed(self))
    monkeypatch.setattr(Reader, "read_data", lambda self, *rest: reads.append(1) or read(self, *rest))
    stored = Stored(tmp_path, "w.")
    assert not reads and set(stored) == {name.removeprefix("w.") for name in tensors}
    for name, tensor in stored.items():
        assert torch.equal(tensor, tensors[f"w.{name}"])
        assert len(stored.near) <= len(SHAPES)
    assert (len(lists), len(reads)) == (1, 4)


def test_views_are_written_without_what_they_are_views_of(tmp_path: Path) -> None:
    fused = torch.randn(300, 100)
    q, k, v = fused.chunk(3)
    save(pieces({"q": q, "k": k, "v": v, "turned": fused.T}), tmp_path)
    assert torch.equal(load_whole(tmp_path)["k"], k)
    assert torch.equal(load_whole(tmp_path)["turned"], fused.T)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2.2 * fused.nbytes


def test_pytorchs_own_tools_read_the_folder(saved: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder, tensors = saved
    dcp_to_torch_save(folder, tmp_path / "one.pt")
    back = torch.load(tmp_path / "one.pt", weights_only=True)
    assert all(torch.equal(back[name], tensors[name]) for name in SHAPES)


def test_a_snapshot_does_not_move_with_the_tensor_and_may_be_filled_again() -> None:
    tensor = torch.zeros(3)
    first = snapshot(pieces({"a": tensor}))
    tensor += 1
    assert first["a"].local.sum() == 0
    second = snapshot(pieces({"a": tensor}), first)
    assert second["a"].local.sum() == 3
    assert second["a"].local.data_ptr() == first["a"].local.data_ptr()
    longer = snapshot(pieces({"a": torch.ones(5)}), second)
    assert longer["a"].local.tolist() == [1.0] * 5, "states of dice are texts of any length"


def test_what_is_missing_or_of_another_shape_is_named(saved: tuple[Path, dict[str, Tensor]]) -> None:
    with pytest.raises(UserError, match="holds no other"):
        load({"other": torch.zeros(1)}, saved[0])
    with pytest.raises(UserError, match=r"matrix is \(3, 4\), not \(4, 3\)"):
        load({"matrix": torch.zeros(4, 3)}, saved[0])


class Harm:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("harm"),)


def test_code_in_the_metadata_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / METADATA).write_bytes(pickle.dumps(Metadata({"a": Harm()})))
    with pytest.raises(UserError, match=r"\.metadata: not a readable checkpoint \(it would import pathlib"):
        names(tmp_path)
    assert not Path("harm").exists()


def test_no_file_outside_the_folder_is_read(saved: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    with (saved[0] / METADATA).open("rb") as file:
        metadata = pickle.load(file)
    for place in metadata.storage_data.values():
        place.relative_path = f"../{saved[0].name}/{place.relative_path}"
    (tmp_path / METADATA).write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match="names a file outside its folder"):
        load_whole(tmp_path)


@given(st.binary(max_size=60), st.integers(0, 2000), st.booleans())
def test_damaged_metadata_is_a_user_error(
    tmp_path_factory: pytest.TempPathFactory,
    saved: tuple[Path, dict[str, Tensor]],
    junk: bytes,
    at: int,
    cut: bool,
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    whole = (saved[0] / METADATA).read_bytes()
    (folder / METADATA).write_bytes(whole[:at] + (b"" if cut else junk + whole[at + len(junk) :]))
    (folder / "__0_0.distcp").write_bytes((saved[0] / "__0_0.distcp").read_bytes())
    try:
        load_whole(folder)
    except UserError as error:
        assert str(folder) in str(error)


def test_a_cut_off_shard_is_a_user_error(saved: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    for path in saved[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = tmp_path / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(UserError, match="damaged"):
        load_whole(tmp_path)
