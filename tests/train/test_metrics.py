"""metrics.jsonl: every line is kept or told of, and none of its troubles ends a run."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.train import metrics
from gpt2.train.config import TrainConfig
from gpt2.train.loop import Run, StepResult
from gpt2.train.metrics import NAME, MetricsFile, append, parse, read_metrics


def steps_in(run: Path) -> list[int]:
    return [line["step"] for line in read_metrics(run)]


class Disk:
    """Stands in for `append`: full or not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.original = append
        monkeypatch.setattr(metrics, "append", self)
        monkeypatch.setattr(metrics, "RETRY_SECONDS", 0.0)

    def __call__(self, path: Path, data: bytes) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        self.original(path, data)


def test_lines_wait_for_a_full_disk_and_are_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk, file = Disk(monkeypatch), MetricsFile(tmp_path)
    for step in range(1, 8):
        disk.full = 3 <= step <= 5
        file.write(step)
    file.close()
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5, 6, 7]
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(NAME)[2] for line in said] == [
        ": no space left on device; training goes on, the lines wait in memory",
        ": written again",
    ]


def test_what_waits_is_bounded_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics, "MOST_WAITING", 3)
    disk, file = Disk(monkeypatch), MetricsFile(tmp_path)
    disk.full = True
    for step in range(1, 6):
        file.write(step)
    file.close()
    assert "the last 3 lines could not be written; 2 lines are lost" in capsys.readouterr().err
    assert steps_in(tmp_path) == []


def test_a_write_that_the_disk_cuts_short_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / NAME
    append(path, b'{"step": 1}\n')
    original = Path.open

    class Short:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Short:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            return int(self.file.write(data[:4]))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, *words, **names: Short(original(self, *words, **names)))
        with pytest.raises(OSError, match="No space left"):
            append(path, b'{"step": 2}\n')
    assert path.read_bytes() == b'{"step": 1}\n'


def test_a_folder_that_vanished_is_made_again_but_not_the_disk_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics, "RETRY_SECONDS", 0.0)
    disk = tmp_path / "disk"
    run = disk / "run"
    run.mkdir(parents=True)
    file = MetricsFile(run)
    file.write(1)
    shutil.rmtree(run)
    file.write(2)
    assert steps_in(run) == [2]
    shutil.rmtree(disk)
    file.write(3)
    assert not disk.exists()
    disk.mkdir()
    file.write(4)
    assert steps_in(run) == [3, 4]
    said = capsys.readouterr().err
    assert said.count("has gone; a new one is begun") == 2
    assert said.count("training goes on") == 1


def test_a_run_whose_folder_vanishes_trains_to_its_end(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt2.train.hooks import Log
    from gpt2.train.pretrain import pretrain

    original, config = Log.__call__, tiny(max_steps=6, save_every=4)

    def call(self: Log, run: Run, result: StepResult) -> None:
        original(self, run, result)
        if run.state.step == 2:
            shutil.rmtree(config.out)

    monkeypatch.setattr(Log, "__call__", call)
    finished = pretrain(config, quiet=True)
    assert finished.state.step == 6
    assert (finished.folder / "last" / "model.safetensors").exists()
    assert {line["step"] for line in read_metrics(finished.folder)} >= {3, 4, 5, 6}


def test_a_resumed_run_forgets_later_lines_and_a_torn_one(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(
        '{"step": 1}\n{"step": 2, "x": NaN}\nnonsense\n{"step": 3}\n{"step": 4', encoding="utf-8"
    )
    file = MetricsFile(tmp_path, resume_step=2)
    file.write(3, loss=1.5)
    file.close()
    lines = [json.loads(line) for line in (tmp_path / NAME).read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[2]["loss"] == 1.5
    assert lines[2]["time"] > 1.7e9


def test_what_json_cannot_say_is_null(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path)
    file.write(1, loss=float("nan"), deep={"norm": float("inf"), "fine": 2.0})
    text = (tmp_path / NAME).read_text(encoding="utf-8")
    assert "NaN" not in text and "Infinity" not in text
    (line,) = read_metrics(tmp_path)
    assert (line["loss"], line["deep"]) == (None, {"norm": None, "fine": 2.0})


def test_all_processes_but_the_main_one_write_nothing() -> None:
    file = MetricsFile(None)
    file.write(1, loss=2.0)
    file.close()


@given(
    st.lists(st.one_of(st.binary(max_size=30), st.just(b'{"step": 7}'), st.just(b"[1]"), st.just(b'{"step": true}')))
)
def test_any_bytes_are_read(tmp_path_factory: pytest.TempPathFactory, texts: list[bytes]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(b"".join(text + b"\n" for text in texts))
    lines, damaged = parse(path)
    assert len(lines) >= texts.count(b'{"step": 7}')
    assert all(type(line["step"]) is int for line in lines)
    assert damaged >= texts.count(b"[1]")
