"""A file is the old one or the new one, never half of either."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from gpt2 import atomic


def test_replaces_the_old_content_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    atomic.write_text(path, "one\n")
    atomic.write_text(path, "två\n")
    assert path.read_bytes() == "två\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_halfway_keeps_the_old_file_and_removes_the_new(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    atomic.write_bytes(path, b"old")
    with pytest.raises(OSError), atomic.replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, order = tmp_path / "a.bin", []
    monkeypatch.setattr(atomic, "sync", lambda place: order.append((place.name, path.exists())))
    atomic.write_bytes(path, b"new")
    assert [exists for _, exists in order] == [False, True]
    assert order[1][0] == tmp_path.name


def test_a_folder_that_is_missing_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        atomic.write_text(tmp_path / "nowhere" / "a.txt", "x")
