"""Shards on disk: ours, nanoGPT's and llm.c's, written, read, cut back and checked."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data.shards import Meta, ShardWriter, SplitMeta, dtype_for, nanogpt_symbols, open_split, read_meta
from gpt2.errors import UserError

FORMATS = pytest.mark.parametrize("format", ["nanogpt", "llmc"])


def write(folder: Path, format: str, count: int, shard_tokens: int | None = None, dtype: str = "uint16") -> Meta:
    sides = {}
    for side in ("train", "val"):
        writer = ShardWriter(folder, side, dtype, format, shard_tokens)
        writer.write(np.arange(count))
        writer.close()
        sides[side] = SplitMeta(tuple(writer.files), count, 1, 4 * count, None)
    meta = Meta(format=format, dtype=dtype, vocab_size=1000, source="é", **sides)
    meta.save(folder)
    return meta


@FORMATS
@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("shard_tokens", [None, 7, 20, 100])
def test_tokens_come_back_across_files(tmp_path: Path, format: str, dtype: str, shard_tokens: int | None):
    meta = write(tmp_path, format, 20, shard_tokens, dtype)
    assert read_meta(tmp_path) == meta
    split = open_split(tmp_path, "train")
    assert len(split) == 20 and split.text_bytes == 80 and split.preceding is None
    for start in range(21):
        for stop in range(start, 21):
            tokens = split.tokens(start, stop)
            assert tokens.dtype == np.int64 and tokens.tolist() == list(range(start, stop))
    for start, stop in ((-1, 3), (5, 4), (0, 21)):
        with pytest.raises(IndexError):
            split.tokens(start, stop)


def test_the_bytes_are_the_formats(tmp_path: Path):
    write(tmp_path, "nanogpt", 3)
    assert (tmp_path / "train.bin").read_bytes() == bytes([0, 0, 1, 0, 2, 0])
    write(tmp_path, "llmc", 3, 2)
    first, last = (np.fromfile(tmp_path / f"train_{n:06d}.bin", "<i4", 256) for n in (0, 1))
    assert first.tolist() == [20240520, 1, 2] + [0] * 253 and last[2] == 1
    assert (tmp_path / "train_000001.bin").read_bytes()[1024:] == bytes([2, 0])
    write(tmp_path, "llmc", 3, None, "uint32")
    data = (tmp_path / "train.bin").read_bytes()
    assert np.frombuffer(data[:12], "<i4").tolist() == [20240801, 7, 3]
    assert np.frombuffer(data[1024:], "<u4").tolist() == [0, 1, 2]


def test_uint32_where_the_vocabulary_needs_it():
    assert [dtype_for(size) for size in (256, 65536, 65537)] == ["uint16", "uint16", "uint32"]


@settings(max_examples=40)
@given(
    st.sampled_from(["nanogpt", "llmc"]),
    st.sampled_from([None, 3, 5]),
    st.lists(st.integers(0, 9), max_size=6),
    st.data(),
)
def test_a_writer_cut_back_to_any_position_writes_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    format: str,
    shard_tokens: int | None,
    sizes: list[int],
    data: st.DataObject,
):
    total = sum(sizes)
    folder = tmp_path_factory.mktemp("w")
    writer = ShardWriter(folder, "train", "uint16", format, shard_tokens)
    for stop, size in zip(np.cumsum(sizes), sizes, strict=True):
        writer.write(np.arange(stop - size, stop))
    if data.draw(st.booleans()):
        writer.close()
    else:
        writer.sync()
    position = data.draw(st.integers(0, total))
    again = ShardWriter(folder, "train", "uint16", format, shard_tokens, position)
    again.write(np.arange(position, total))
    again.close()
    whole = tmp_path_factory.mktemp("w")
    plain = ShardWriter(whole, "train", "uint16", format, shard_tokens)
    plain.write(np.arange(total))
    plain.close()
    contents = [{path.name: path.read_bytes() for path in place.iterdir()} for place in (folder, whole)]
    assert contents[0] == contents[1] and sorted(contents[0]) == again.files == plain.files


def test_nanogpts_folder_without_meta_json_is_read(tmp_path: Path):
    np.arange(10, dtype="<u2").tofile(tmp_path / "train.bin")
    np.arange(4, dtype="<u2").tofile(tmp_path / "val.bin")
    assert read_meta(tmp_path).vocab_size == 50257
    symbols = ["a", "b", "é"]
    tree = {"vocab_size": 3, "itos": dict(enumerate(symbols)), "stoi": {c: n for n, c in enumerate(symbols)}}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(tree))
    assert nanogpt_symbols(tmp_path) == symbols and read_meta(tmp_path).vocab_size == 3
    val = open_split(tmp_path, "val")
    assert val.tokens(0, 4).tolist() == [0, 1, 2, 3] and val.text_bytes is None and val.preceding is None


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path):
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "run"),)  # type: ignore[return-value]

    np.arange(10, dtype="<u2").tofile(tmp_path / "train.bin")
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match=r"meta\.pkl.*would import"):
        open_split(tmp_path, "train")
    assert not (tmp_path / "run").exists()


def test_llmc_shards_of_others_are_read_by_their_names(tmp_path: Path):
    for name, values in (("train_000001", [1, 2]), ("train_000002", [3]), ("val_000000", [4, 5])):
        header = np.zeros(256, "<i4")
        header[:3] = 20240520, 1, len(values)
        (tmp_path / f"fineweb_{name}.bin").write_bytes(header.tobytes() + np.array(values, "<u2").tobytes())
    assert open_split(tmp_path, "train").tokens(0, 3).tolist() == [1, 2, 3]
    assert open_split(tmp_path, "val").meta.format == "llmc"


@FORMATS
def test_damage_is_found_when_a_folder_is_opened(tmp_path: Path, format: str):
    write(tmp_path, format, 20)
    path = tmp_path / "train.bin"
    whole = path.read_bytes()
    for damaged in (whole[:-2], whole[:-1], whole + b"\0\0"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="prepare"):
            open_split(tmp_path, "train")
    path.unlink()
    with pytest.raises(UserError, match=r"train\.bin: missing"):
        open_split(tmp_path, "train")


def test_folders_that_are_no_data_say_how_to_make_them(tmp_path: Path):
    with pytest.raises(UserError, match="gpt2 prepare SOURCE"):
        open_split(tmp_path / "none", "train")
    with pytest.raises(UserError, match="gpt2 prepare SOURCE"):
        open_split(tmp_path, "train")
    np.arange(4, dtype="<u2").tofile(tmp_path / "train.bin")
    with pytest.raises(UserError, match="no val tokens"):
        open_split(tmp_path, "val")
    with pytest.raises(UserError, match="train or val"):
        open_split(tmp_path, "test")
    for text in ("{", "[]", '{"version": 99}', '{"version": 1, "colour": 2}'):
        (tmp_path / "meta.json").write_text(text)
        with pytest.raises(UserError, match=r"meta\.json"):
            open_split(tmp_path, "train")
