"""A step is whole or not there: damage of any kind is found, and the step before is taken."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2.checkpoint import sharded
from gpt2.checkpoint.find import follow, point
from gpt2.checkpoint.pieces import pieces
from gpt2.checkpoint.train_state import (
    MANIFEST,
    STATE,
    WEIGHTS,
    Step,
    clean,
    damage,
    need,
    needed,
    newest_good_step,
    prune,
    read_numbers,
    save_step,
    step_name,
    steps,
)
from gpt2.errors import UserError


def write_model(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """A model folder of sorts."""
    (folder / "config.json").write_text("{}")
    (folder / "model.bin").write_bytes(weights["a"].numpy().tobytes())


def made(number: int) -> Step:
    tensors = {WEIGHTS + "a": torch.full((50,), float(number)), "optimizer.a": torch.randn(50)}
    return Step(number, {"state": {"step": number}}, pieces(tensors), write_model)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("saved")
    for number in (5, 10):
        save_step(run, made(number))
    return run


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run", symlinks=True))


def test_a_step_has_model_numbers_tensors_and_last_names_it(run: Path) -> None:
    newest = run / step_name(10)
    assert newest_good_step(run) == newest
    assert follow(run / "last") == newest.resolve()
    assert read_numbers(newest) == {"state": {"step": 10}}
    assert (newest / "model.bin").read_bytes() == torch.full((50,), 10.0).numpy().tobytes()
    assert torch.equal(sharded.load_whole(newest / STATE, WEIGHTS)["a"], torch.full((50,), 10.0))


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FILES = ["model.bin", f"{STATE}/__0_0.distcp", f"{STATE}/.metadata", f"{STATE}/state.json", f"{STATE}/{MANIFEST}"]


@pytest.mark.parametrize("harm", [flipped, cut, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_any_harm_to_any_file_is_named_and_the_step_before_is_taken(
    run: Path, name: str, harm: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    newest = run / step_name(10)
    harm(newest / name)
    assert newest_good_step(run) == run / step_name(5)
    said = capsys.readouterr().err
    assert said.startswith(f"{newest}: ") and said.endswith("; going back to the step before it\n")
    assert name in said or MANIFEST in name


def test_where_every_step_is_damaged_there_is_none(run: Path) -> None:
    for folder in steps(run):
        cut(folder / "model.bin")
    assert newest_good_step(run) is None


def test_a_damaged_step_is_written_anew(run: Path) -> None:
    cut(run / step_name(10) / "model.bin")
    save_step(run, made(10))
    assert damage(run / step_name(10)) is None
    assert not list(run.glob(".step_*"))


@pytest.mark.parametrize("place", ["tensors", "model", "manifest", "rename"])
def test_a_failed_save_leaves_nothing_behind_and_the_older_steps_as_they_are(
    run: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*anything: object) -> None:
        raise OSError(28, "No space left on device")

    step = made(15)
    if place == "tensors":
        monkeypatch.setattr(sharded.Writer, "write_data", fail)
    elif place == "model":
        step = Step(15, {}, step.pieces, fail)
    else:
        name = {"manifest": "manifest", "rename": "replace_folder"}[place]
        monkeypatch.setattr(f"gpt2.checkpoint.train_state.{name}", fail)
    with pytest.raises(OSError, match="No space left"):
        save_step(run, step)
    assert [path.name for path in steps(run)] == [step_name(5), step_name(10)]
    assert not list(run.glob(".*"))
    assert newest_good_step(run) == run / step_name(10) == follow(run / "last")


def test_leftovers_of_a_kill_are_removed_and_harm_no_later_save(run: Path) -> None:
    shutil.copytree(run / step_name(10), run / f".{step_name(15)}.tmp")
    save_step(run, made(15))
    assert damage(run / step_name(15)) is None
    shutil.copytree(run / step_name(10), run / f".{step_name(20)}.tmp")
    (run / ".report.html.123.tmp").write_text("<html>")
    clean(run)
    assert not list(run.glob(".*"))


def test_a_step_that_was_just_to_be_replaced_is_put_back(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the two renames of a step that is written once more."""
    original = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.startswith(".step_") and self.name.endswith(".tmp"):
            raise KeyboardInterrupt
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            save_step(run, made(10))
    assert not (run / step_name(10)).exists()
    clean(run)
    assert newest_good_step(run) == run / step_name(10)
    assert not list(run.glob(".*"))
    save_step(run, made(10))
    assert damage(run / step_name(10)) is None and not list(run.glob(".*"))


def test_a_step_that_cannot_be_replaced_stays(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.startswith(".step_") and self.name.endswith(".tmp"):
            raise PermissionError("a scanner has it open")
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(PermissionError):
        save_step(run, made(10))
    assert damage(run / step_name(10)) is None and not list(run.glob(".*"))


def test_processes_share_the_work_of_summing_a_step(run: Path) -> None:
    step = run / step_name(10)
    cut(step / "model.bin")
    found = [damage(step, part, 3) for part in range(3)]
    assert sorted(found, key=str) == [None, None, "model.bin is damaged"]


def test_a_leftover_that_will_not_go_is_let_be(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / f".{step_name(15)}.tmp").mkdir()
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    clean(run)
    assert newest_good_step(run) == run / step_name(10)


def test_what_others_are_writing_meanwhile_is_let_be(run: Path) -> None:
    """A thread removes old steps while the steps' hooks, and other processes, write beside them."""
    (run / f".{step_name(15)}.tmp").mkdir()
    (run / ".report.html.123.tmp").write_text("<html>")
    prune(run, 1, set())
    assert [path.name for path in run.glob(".*")] == [".report.html.123.tmp"]


def test_old_steps_go_but_for_those_to_keep(run: Path) -> None:
    for number in (15, 20):
        save_step(run, made(number))
    prune(run, 2, {run / step_name(5)})
    assert [path.name for path in steps(run)] == [step_name(5), step_name(15), step_name(20)]


def test_old_steps_go_where_links_cannot_be(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*anything: object, **more: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    for number in (15, 20):
        save_step(run, made(number))
    (run / "last").unlink()
    point(run / "last", run / step_name(20))
    prune(run, 1, set())
    assert [path.name for path in steps(run)] == [step_name(20)]


def test_a_step_that_another_run_needs_stays_as_long_as_that_run(run: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    oldest = next(steps(run))
    need(oldest, adapter)
    need(tmp_path, adapter)  # a model folder that is no run's step
    save_step(run, made(15))
    prune(run, 1, set())
    assert oldest in steps(run) and damage(oldest) is None and not list(tmp_path.glob("needed*"))
    (oldest / "model.safetensors").write_bytes(b"damaged")
    save_step(run, made(5))  # as a run does that had to go back behind it
    point(run / "last", run / step_name(15))
    prune(run, 1, set())
    assert oldest in steps(run) and damage(oldest) is None
    adapter.rmdir()
    prune(run, 1, set())
    assert oldest not in steps(run)


def test_a_step_stays_where_it_cannot_be_seen_who_needs_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    oldest = next(steps(run))
    need(oldest, tmp_path / "caf\udce9")
    assert not needed(oldest)
    need(oldest, tmp_path / "a" / "b")
    monkeypatch.setattr(Path, "stat", raising(PermissionError(13, "Permission denied")))
    assert needed(oldest)
    monkeypatch.setattr(Path, "open", raising(PermissionError(13, "Permission denied")))
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    need(oldest, Path("/x"))
    assert "not marked as needed (Permission denied)" in capsys.readouterr().err


def raising(error: OSError) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


def test_damaged_steps_behind_the_one_that_was_gone_back_to_push_no_whole_one_out(run: Path) -> None:
    *_, older, newest = steps(run)
    point(run / "last", older)  # as it is once the run has gone back and written this one anew
    prune(run, 1, set())
    assert older.exists() and newest.exists()


def test_a_file_that_cannot_be_read_is_damage(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sha256(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("gpt2.checkpoint.train_state.sha256", sha256)
    *_, newest = steps(run)
    assert "cannot be read (Input/output error)" in str(damage(newest))


def test_numbers_that_are_none_are_a_user_error(run: Path) -> None:
    (run / step_name(10) / STATE / "state.json").write_text("[1]")
    with pytest.raises(UserError, match="not the numbers of a checkpoint"):
        read_numbers(run / step_name(10))
    (run / step_name(10) / STATE / "state.json").unlink()
    with pytest.raises(UserError, match=r"state\.json: not readable"):
        read_numbers(run / step_name(10))
