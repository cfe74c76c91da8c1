"""The command: every kind of source, messages on stderr alone, bad input as one line and exit code 2."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from gpt2.data.shards import read_meta

STORY = "Once upon a time there was a little car named Beep. It loved to go fast and play in the sun. "


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text(STORY * 3)
    (folder / "b.md").write_text("# Another\n\nQuite a different text, which is not about cars.\n")
    (folder / "c.jsonl").write_text('{"text": "One row."}\n{"text": "And one more row."}\n')
    (folder / "d.csv").write_text('text,id\n"A cell, quoted",1\n')
    return folder


def test_a_folder_with_every_flag(corpus: Path, tmp_path: Path, gpt2: Callable):
    flags = (
        "--tokenizer train:260 --split document --val-fraction 0.3 --eot --seed 3 --text-column text --encoding utf-8"
    )
    more = "--errors replace --workers 1 --format llmc --shard-tokens 50"
    ran = gpt2("prepare", corpus, "--out", tmp_path / "d", *flags.split(), *more.split())
    assert ran.code == 0 and ran.out == ""
    meta = read_meta(tmp_path / "d")
    assert (meta.vocab_size, meta.split, meta.val_fraction, meta.seed) == (260, "document", 0.3, 3)
    assert meta.format == "llmc" and len(meta.train.files) > 1 and meta.eot_id is not None
    assert meta.train.documents + meta.val.documents == 5
    assert f"train {meta.train.tokens:,} tokens in {meta.train.documents:,} documents" in ran.err


def test_a_pattern_and_standard_input(corpus: Path, tmp_path: Path, gpt2: Callable):
    assert gpt2("prepare", corpus / "*.md", corpus / "a.*", "--tokenizer", "byte", "--out", tmp_path / "d").code == 0
    assert read_meta(tmp_path / "d").train.documents == 1
    command = [sys.executable, "-m", "gpt2", "prepare", "-", "--tokenizer", "char", "--out", str(tmp_path / "e")]
    for expected in ("one single document", "nothing to do"):
        ran = subprocess.run(command, input=(STORY * 10).encode(), capture_output=True, check=True)
        assert ran.stdout == b"" and expected in ran.stderr.decode()
    assert read_meta(tmp_path / "e").train.tokens == 9 * len(STORY)
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == [
        "meta.json",
        "tokenizer",
        "train.bin",
        "val.bin",
    ]


def test_the_standard_library(tmp_path: Path, gpt2: Callable):
    assert gpt2("prepare", "stdlib:", "--tokenizer", "byte", "--out", tmp_path / "d").code == 0
    meta = read_meta(tmp_path / "d")
    assert meta.source == "stdlib:" and meta.train.documents > 300 and meta.val.documents > 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("missing.txt", "missing.txt: no such file or folder"),
        ("latin.txt", "latin.txt: not utf-8 at byte offset 1 (0xe9): give its --encoding"),
        ("empty.txt", "empty.txt: empty, no text in it"),
        ("bad.jsonl", "bad.jsonl:1: not valid JSON"),
        ("in --text-column body", "no column 'body'; --text-column NAME chooses from: text"),
        ("in --tokenzer byte", "no such option '--tokenzer' (did you mean '--tokenizer'?)"),
        ("in --split halves", "'halves' is not one of"),
        ("", "Missing argument 'SOURCE...'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    corpus: Path, tmp_path: Path, gpt2: Callable, monkeypatch: pytest.MonkeyPatch, words: str, said: str
):
    (tmp_path / "latin.txt").write_bytes("né".encode("latin-1"))
    (tmp_path / "empty.txt").touch()
    (tmp_path / "bad.jsonl").write_text("{")
    monkeypatch.chdir(tmp_path)
    ran = gpt2("prepare", *words.split(), "--out", "d")
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err and ran.err.count("\n") == 1
    assert not (tmp_path / "d").exists()


def test_a_live_bar_is_shown_at_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from gpt2.data import progress

    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with progress.progress("encoding", 4_000_000) as update:
        update(0)
        update(1_000_000)
    assert capsys.readouterr().err.startswith("encoding: 25 % at ")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.progress("encoding", 4) as update:
        update(1)
        update(4)
    assert capsys.readouterr().out == ""


def test_help_answers_with_examples_and_every_suffix_that_is_read():
    from gpt2.cli.prepare import command
    from gpt2.data.sources import PROSE, TABLES

    text = CliRunner().invoke(command, ["--help"]).output
    assert "Examples:" in text and all(suffix in text for suffix in (*PROSE, *TABLES))
