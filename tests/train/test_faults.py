"""Whatever happens to disk, folder, console or process: the run goes on, or ends with a good checkpoint."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2.checkpoint import sharded
from gpt2.checkpoint.train_state import damage, newest_good_step, read_numbers, steps
from gpt2.errors import UserError
from gpt2.runtime import say
from gpt2.train.background import Background
from gpt2.train.begun import began
from gpt2.train.config import TrainConfig
from gpt2.train.hooks import Log
from gpt2.train.loop import Run, StepResult
from gpt2.train.pretrain import pretrain, resume
from gpt2.train.save import Save

Tiny = Callable[..., TrainConfig]
TRACE = ("step", "tokens", "train/loss", "grad_norm", "learning_rate")


def trace(run: Path) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [tuple(line[key] for key in TRACE) for line in lines if "train/loss" in line]


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    """Have something happen after a step's line is written and before its checkpoint."""
    original = Log.__call__

    def call(self: Log, run: Run, result: StepResult) -> None:
        original(self, run, result)
        if run.state.step == step:
            act()

    monkeypatch.setattr(Log, "__call__", call)


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """What a run that nothing happens to leaves, by a first test that asks."""
    return {}


def expected(tiny: Tiny, plain: dict[str, Any], tmp_path: Path) -> list[tuple[float, ...]]:
    if not plain:
        finished = pretrain(tiny(out=str(tmp_path / "plain"), async_save=False, **SETTINGS), quiet=True)
        plain["trace"] = trace(finished.folder)
    found: list[tuple[float, ...]] = plain["trace"]
    return found


SETTINGS: dict[str, Any] = {"model": {"dropout": 0.1}, "save_every": 3, "dtype": "bfloat16"}


def test_a_thread_that_saves_changes_no_bit_of_the_run(tiny: Tiny, plain: dict[str, Any], tmp_path: Path) -> None:
    run = pretrain(tiny(**SETTINGS | {"save_every": 1}), quiet=True).folder
    assert trace(run) == expected(tiny, plain, tmp_path)


def test_training_goes_on_while_a_checkpoint_is_written(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    further = threading.Event()
    write = Save.write

    def slow(self: Save, step: Any, improved: bool) -> None:
        if step.number == 3:
            assert further.wait(60), "the steps waited for the checkpoint"
        write(self, step, improved)

    monkeypatch.setattr(Save, "write", slow)
    at_step(monkeypatch, 5, further.set)
    run = pretrain(tiny(**SETTINGS | {"keep_last": 9}), quiet=True).folder
    assert [int(path.name[5:]) for path in steps(run)] == [3, 6, 9, 12]
    assert all(damage(path) is None for path in steps(run))
    saved = sharded.load_whole(run / "step_00000003" / "train_state", "weights.")
    later = sharded.load_whole(run / "step_00000006" / "train_state", "weights.")
    assert not torch.equal(saved["wte.weight"], later["wte.weight"])
    assert read_numbers(run / "step_00000003")["state"]["step"] == 3


def test_a_full_disk_ends_the_run_at_the_next_step_and_it_can_go_on_later(
    tiny: Tiny, plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    config = tiny(**SETTINGS)
    out = Path(config.out)

    def fill(out: Path) -> None:
        while not (out / "step_00000006").exists():
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    with monkeypatch.context() as patch:
        # A limit on the size of files is a full disk that needs no rights: write() fails with EFBIG.
        at_step(patch, 8, lambda: fill(out))
        try:
            with pytest.raises(UserError, match=r"step 9: the disk is full .*; the last good checkpoint is .*00006"):
                pretrain(config, quiet=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert newest_good_step(out) == out / "step_00000006"
    assert not list(out.glob(".step_*")), "what was begun is still there"
    resume(out, quiet=True)
    assert trace(out) == expected(tiny, plain, tmp_path)


def test_an_error_of_the_last_checkpoint_is_told_at_the_end(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*anything: object) -> None:
        raise OSError(28, "No space left on device")

    at_step(monkeypatch, 12, lambda: monkeypatch.setattr(sharded.Writer, "write_data", full))
    with pytest.raises(UserError, match=r"step 12: the disk is full .*; the last good checkpoint is .*00009"):
        pretrain(tiny(**SETTINGS), quiet=True)


def test_an_error_in_training_lets_the_checkpoint_in_the_making_be_finished(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 7, lambda: 1 / 0)
    config = tiny(**SETTINGS)
    with pytest.raises(ZeroDivisionError):
        pretrain(config, quiet=True)
    assert newest_good_step(Path(config.out)) == Path(config.out) / "step_00000006"


def test_a_run_folder_that_vanishes_is_made_anew_and_can_be_resumed(
    tiny: Tiny,
    plain: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny(**SETTINGS)
    out = Path(config.out)

    def vanish() -> None:
        shutil.rmtree(out, ignore_errors=True)

    with monkeypatch.context() as patch:
        at_step(patch, 8, vanish)
        pretrain(config, quiet=True)
    assert "vanished" in capsys.readouterr().err
    newest = newest_good_step(out)
    assert newest is not None and newest.name == "step_00000012"
    assert trace(out)[-3:] == expected(tiny, plain, tmp_path)[-3:]
    assert resume(out, quiet=True).state.step == 12


def test_a_folder_that_cannot_be_made_again_ends_the_run_with_one_line(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(**SETTINGS)
    out = Path(config.out)

    def replace() -> None:
        out.rename(out.with_name("elsewhere"))  # at once: a checkpoint may just be written into it
        out.write_text("a file in its place")

    at_step(monkeypatch, 8, replace)
    with pytest.raises(UserError, match=r"step \d: a write failed: .*; there is no checkpoint before it"):
        pretrain(config, quiet=True)


def test_a_console_that_is_not_utf_8_ends_no_run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii", line_buffering=True)
    monkeypatch.setattr(sys, "stderr", console)
    config = tiny(out=str(Path(tiny().out).with_name("lauf-äöü-日本")), **SETTINGS)
    at_step(monkeypatch, 4, lambda: say("→ 日本 🙂"))
    assert pretrain(config).state.step == 12


def test_other_text_or_another_tokenizer_is_refused(tiny: Tiny, tokens: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(tokens, tmp_path / "data"))
    config = tiny(**SETTINGS, data=str(data))
    run = pretrain(config, quiet=True).folder
    text = bytearray((data / "train.bin").read_bytes())
    text[3000] ^= 1
    (data / "train.bin").write_bytes(text)
    with pytest.raises(UserError, match=r"the training text changed since .*00012 was written"):
        resume(run, quiet=True)


def test_the_state_names_its_settings_and_what_it_reads(tiny: Tiny) -> None:
    run = pretrain(tiny(**SETTINGS), quiet=True).folder
    numbers = read_numbers(run / "last")
    assert numbers["config"]["model"]["n_embd"] == 32
    assert set(numbers["data"]) == {"train", "val", "tokenizer"}
    assert (numbers["processes"], numbers["threads"]) == (1, torch.get_num_threads())


def test_an_error_in_the_background_is_handed_over_once() -> None:
    thread = Background()
    assert thread.join() is None
    thread.start(lambda: [][0])
    assert isinstance(thread.join(), IndexError)
    assert not thread.failed
    thread.start(lambda: None)
    assert thread.join() is None


def test_processes_that_are_started_anew_go_on_with_their_own_run_alone(tiny: Tiny) -> None:
    out = Path(tiny().out)
    assert not began(out, tiny(), again=True)
    pretrain(tiny(), quiet=True)
    assert began(out, tiny(), again=True)
    assert not began(out, tiny(), again=False), "the same command typed twice"
    with pytest.raises(UserError, match="holds a run already"):
        began(out, tiny(max_steps=9), again=True)


def test_a_machine_that_takes_another_s_place_goes_on_with_its_job_s_run(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(tiny().out)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "4711")
    pretrain(tiny(), quiet=True)
    assert began(out, tiny(), again=False) and began(out, tiny(), again=True)
    assert not began(out, tiny(max_steps=9), again=False)
    assert pretrain(tiny(), quiet=True).state.step == 12, "it goes on, to the end that it has reached"
    for other in ("4712", "none", ""):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", other)
        assert not began(out, tiny(), again=False) and began(out, tiny(), again=True)


def test_what_a_resumed_run_was_told_holds_for_the_next_one_too(tiny: Tiny) -> None:
    run = pretrain(tiny(max_steps=2, micro_batch_size=4), quiet=True).folder
    before = (run / "config.toml").read_text()
    resume(run, quiet=True)
    assert (run / "config.toml").read_text() == before
    resume(run, quiet=True, changes={"on_outlier": "skip", "micro_batch_size": 2})
    after = (run / "config.toml").read_text()
    assert 'on_outlier = "skip"' in after and "micro_batch_size = 2" in after
    assert after.splitlines()[:2] == before.splitlines()[:2], "who began it"
    resume(run, quiet=True)
    assert (run / "config.toml").read_text() == after


def test_rows_that_a_resume_chose_are_not_halved_by_what_ran_out_before(tiny: Tiny) -> None:
    run = pretrain(tiny(max_steps=2, micro_batch_size=8), quiet=True).folder
    path = run / "step_00000002" / "train_state"
    text = (path / "state.json").read_text().replace('"halvings": 0', '"halvings": 1')
    (path / "state.json").write_text(text)
    sums = json.loads((path / "manifest.json").read_text())
    sums["train_state/state.json"] = [len(text), hashlib.sha256(text.encode()).hexdigest()]
    (path / "manifest.json").write_text(json.dumps(sums))
    assert resume(run, quiet=True).state.halvings == 1
    config = run / "config.toml"  # as a resume leaves it that was killed before its first checkpoint
    config.write_text(config.read_text().replace("micro_batch_size = 8", "micro_batch_size = 4"))
    assert resume(run, quiet=True).state.halvings == 0
