"""What SOURCE arguments name, and what is said where they name nothing."""

from __future__ import annotations

import io
import sys
import types
from pathlib import Path

import pytest

from gpt2.data.sources import expand, spool_stdin, stdlib_files
from gpt2.errors import UserError


def no_stdin() -> Path:
    raise AssertionError("standard input was not asked for")


def names(*specs: object) -> list[str]:
    return [Path(item.name).name for item in expand([str(spec) for spec in specs], no_stdin)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.md", "sub/c.py", "sub/d.jsonl", "sub/picture.png", ".git/config.txt", ".hidden.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    return tmp_path


def test_a_folder_is_read_sorted_at_any_depth_without_hidden_and_unknown_files(folder: Path):
    assert names(folder) == ["a.md", "b.txt", "c.py", "d.jsonl"]


def test_a_pattern_and_single_files_keep_the_order_given_and_a_file_named_twice_is_read_once(folder: Path):
    assert names(folder / "sub/c.py", folder / "**/*.txt", folder / "b.txt") == ["c.py", "b.txt"]


def test_a_file_named_by_itself_is_read_whatever_its_suffix(folder: Path):
    (item,) = expand([str(folder / "sub/picture.png")], no_stdin)
    assert item.kind == "text"


def test_a_file_whose_name_looks_like_a_pattern_is_read(tmp_path: Path):
    (tmp_path / "notes[1].txt").write_text("x")
    assert names(tmp_path / "notes[1].txt") == ["notes[1].txt"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("b.text", r"b\.text: no such file or folder \(did you mean 'b\.txt'\?\)"),
        ("*.rst", "no file matches"),
        ("empty", "no file in it ends in one of .txt"),
        ("x.json", "JSON Lines"),
        ("x.txt.gz", "compressed"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_way_out(folder: Path, spec: str, said: str):
    (folder / "empty").mkdir()
    for name in ("x.json", "x.txt.gz"):
        (folder / name).write_text("x")
    with pytest.raises(UserError, match=said):
        names(folder / spec)


def test_the_standard_library_comes_sorted_and_without_tests_and_tables():
    files = stdlib_files()
    assert files == sorted(files, key=lambda path: path.as_posix()) and len(files) > 100
    assert any(path.name == "argparse.py" for path in files)
    assert not {"test", "tests", "idlelib", "encodings", "site-packages"} & {part for p in files for part in p.parts}


def test_standard_input_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stamps = []
    for text in (b"one", b"two", b"one"):
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(text), isatty=lambda: False))
        (item,) = expand(["-"], lambda: spool_stdin(tmp_path / "spool"))
        assert item.path.read_bytes() == text
        stamps.append(item.stamp)
    assert stamps[0] == stamps[2] != stamps[1]


def test_a_terminal_as_standard_input_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))
    with pytest.raises(UserError, match="terminal"):
        spool_stdin(tmp_path / "spool")


def test_a_dataset_is_asked_of_the_datasets_package(monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, object, str]] = []

    def load_dataset(name: str, config: object, split: str) -> list[dict[str, str]]:
        asked.append((name, config, split))
        return [{"text": "a"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert [item.kind for item in expand(["hf:me/stories", "hf:wikitext:raw"], no_stdin)] == ["rows", "rows"]
    assert asked == [("me/stories", None, "train"), ("wikitext", "raw", "train")]


def test_a_dataset_without_the_package_or_without_a_network_is_a_plain_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install"):
        expand(["hf:x"], no_stdin)

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=fail))
    with pytest.raises(UserError, match=r"hf:x: cannot be loaded .*: no route$"):
        expand(["hf:x"], no_stdin)
