"""Two trainings in one folder: the second is told who is there; what a dead one left behind stops nobody."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2.distributed.ranks import ALONE
from gpt2.errors import UserError
from gpt2.train import lock
from gpt2.train.config import TrainConfig
from gpt2.train.lock import NAME, alone_in, hold
from gpt2.train.pretrain import pretrain, resume

pytestmark = pytest.mark.skipif(lock.fcntl is None, reason="this system has no flock")

Tiny = Callable[..., TrainConfig]


def test_a_run_that_is_being_trained_is_not_resumed(tiny: Tiny) -> None:
    out = pretrain(tiny(max_steps=2), quiet=True).folder
    with alone_in(out, ALONE), pytest.raises(UserError, match=rf"run: process {os.getpid()} is training in it; wait"):
        resume(out, quiet=True)
    assert resume(out, quiet=True).state.step == 2


def test_of_two_that_begin_in_one_folder_the_second_leaves_it_alone(tiny: Tiny) -> None:
    config = tiny(max_steps=2)
    out = Path(config.out)
    with alone_in(out, ALONE), pytest.raises(UserError, match="is training in it"):
        pretrain(config, quiet=True)
    assert [path.name for path in out.iterdir()] == [NAME]
    assert pretrain(config, quiet=True).state.step == 2


def test_one_that_began_meanwhile_and_has_ended_keeps_its_folder(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(max_steps=2)
    out = Path(config.out)

    def end_meanwhile(*_: object) -> TrainConfig:
        out.mkdir()
        (out / "config.toml").write_text("# another's\n")
        return resolve(*_)

    from gpt2.train import pretrain as module

    resolve = module.resolve
    monkeypatch.setattr(module, "resolve", end_meanwhile)
    with pytest.raises(UserError, match="holds a run already"):
        pretrain(config, quiet=True)
    assert (out / "config.toml").read_text() == "# another's\n"


def test_a_killed_process_holds_nothing_and_its_file_means_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        held = hold(tmp_path, 0.0)
        os.write(writing, b"held" if held else b"free")
        signal.pause()
    assert os.read(reading, 4) == b"held"
    with pytest.raises(UserError, match=f"process {child} is training in it"):
        hold(tmp_path, 0.0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    file = hold(tmp_path, 0.0)
    assert file is not None
    file.close()
    assert str(os.getpid()) in (tmp_path / NAME).read_text()


def test_processes_that_are_being_replaced_are_waited_for(tmp_path: Path) -> None:
    held = hold(tmp_path, 0.0)
    assert held is not None
    threading.Timer(0.3, held.close).start()
    with alone_in(tmp_path, ALONE, patience=30.0):
        pass


@pytest.mark.parametrize("content", ["", "{", '{"pid": 3}', "[]"])
def test_a_file_that_does_not_say_who_is_there(tmp_path: Path, content: str) -> None:
    with alone_in(tmp_path, ALONE):
        (tmp_path / NAME).write_text(content)
        with pytest.raises(UserError, match="another process is training in it"):
            hold(tmp_path, 0.0)


def test_a_process_of_another_machine_is_named_with_it(tmp_path: Path) -> None:
    with alone_in(tmp_path, ALONE):
        (tmp_path / NAME).write_text('{"pid": 7, "host": "elsewhere"}')
        with pytest.raises(UserError, match="process 7 on elsewhere is training in it"):
            hold(tmp_path, 0.0)


def test_where_files_cannot_be_locked_a_line_says_so_and_the_run_goes_on(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    assert pretrain(tiny(max_steps=2), quiet=True).state.step == 2
    assert capsys.readouterr().err.count("run: cannot be locked (no locks available); train into it only once") == 1
