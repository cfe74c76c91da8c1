"""TensorBoard and Weights & Biases get every line, and nothing that goes wrong in them reaches the run."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gpt2.distributed.ranks import Ranks
from gpt2.errors import UserError
from gpt2.train import trackers
from gpt2.train.config import TrainConfig
from gpt2.train.metrics import MetricsFile, read_metrics
from gpt2.train.pretrain import pretrain
from gpt2.train.trackers import Background, check_trackers, flatten, open_metrics

Line = tuple[int, Mapping[str, Any]]


class Memory:
    """A tracker that keeps what it is given, or fails at one of its lines."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.lines: list[Line] = []
        self.fail_at, self.closed = fail_at, False

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        if step == self.fail_at:
            raise ConnectionError("no route to host\nand more of it")
        self.lines.append((step, values))

    def close(self) -> None:
        self.closed = True


def test_a_tracker_gets_what_the_file_gets(tmp_path: Path) -> None:
    memory = Memory()
    file = MetricsFile(tmp_path, trackers=[Background("memory", lambda: memory)])
    file.write(1, loss=2.0)
    file.write(1, sample="text")
    file.close()
    assert memory.lines == [(1, {"loss": 2.0}), (1, {"sample": "text"})]
    assert memory.closed


def refuse() -> Memory:
    raise ConnectionError("no route to host")


@pytest.mark.parametrize("start", [lambda: Memory(fail_at=2), refuse], ids=["later", "at once"])
def test_a_tracker_that_fails_is_one_line_and_the_file_has_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], start: Callable[[], Memory]
) -> None:
    file = MetricsFile(tmp_path, trackers=[Background("memory", start)])
    for step in range(1, 6):
        file.write(step)
        time.sleep(0.01)
    file.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    assert capsys.readouterr().err == (
        "memory: no route to host; the run goes on without it (metrics.jsonl has every line)\n"
    )


def test_a_tracker_that_hangs_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(trackers, "MOST_WAITING", 4)
    free = threading.Event()
    for lines, why in ((2, "not done after 0 s"), (9, "it takes no more lines")):
        tracker = Background("slow", lambda: free.wait() and Memory())
        begin = time.perf_counter()
        for step in range(lines):
            tracker.write(step, {})
        tracker.close()
        assert time.perf_counter() - begin < 5
        assert capsys.readouterr().err.count(f"slow: {why}") == 1
    free.set()


def test_only_the_main_process_tracks(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    file = open_metrics(tiny(tensorboard=True), 0, Ranks(rank=1, world_size=2))
    file.write(1, loss=2.0)
    file.close()
    assert not Path(tiny().out).exists()


@pytest.mark.parametrize(("flag", "name"), [({"tensorboard": True}, "tensorboard"), ({"wandb": "project"}, "wandb")])
def test_a_package_that_is_missing_is_named_before_anything_is_written(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flag: dict[str, Any], name: str
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "editable" not in str(finder).lower()])
    monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / name).mkdir()  # what a tracker leaves behind is not the package
    with pytest.raises(UserError, match=f"--{name}: the package {name} is not installed; .*pip install {name}"):
        check_trackers(tiny(**flag))


def test_no_tracker_needs_nothing(tiny: Callable[..., TrainConfig]) -> None:
    check_trackers(tiny())


class FakeWandb(ModuleType):
    """As much of the package as is used here, remembering all of it."""

    def __init__(self, has_key: bool = True, mode: str = "online") -> None:
        super().__init__("wandb")
        self.__spec__ = SimpleNamespace(origin="here")  # type: ignore[assignment]
        self.logged: list[dict[str, Any]] = []
        self.opened: list[dict[str, Any]] = []
        self.finished = 0
        self.has_key, self.mode = has_key, mode

    def setup(self) -> Any:
        return SimpleNamespace(settings=SimpleNamespace(mode=self.mode))

    def login(self, prompt: bool, verify: bool) -> bool:
        assert not prompt and not verify
        return self.has_key

    def init(self, **settings: Any) -> Any:
        self.opened.append(settings)
        return self

    Settings = staticmethod(lambda **settings: settings)
    Html = staticmethod(lambda text: text)
    offline, url = False, "https://example.org/run"

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_weights_and_biases_goes_on_with_the_same_run_and_gets_no_whole_step_twice(
    tiny: Callable[..., TrainConfig], wandb: FakeWandb, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(wandb="project")
    Path(config.out).mkdir()
    check_trackers(config)
    for resume_step, last in ((0, 5), (3, 7)):  # killed after 5, the checkpoint is that of 3
        file = open_metrics(config, resume_step)
        for step in range(resume_step + 1, last + 1):
            file.write(step, **{"train/loss": 1.0 / step, "grad_norm": None, "sample": "<b>"})
        file.close()
    first, second = wandb.opened
    assert first["id"] == second["id"] and second["resume"] == "allow"
    assert (first["project"], first["name"]) == ("project", "run")
    assert first["config"]["model"]["n_layer"] == 2
    assert [line["step"] for line in wandb.logged] == [1, 2, 3, 4, 5, 5, 6, 7]
    assert wandb.logged[0] == {"step": 1, "train/loss": 1.0, "sample": "<pre>&lt;b&gt;</pre>"}
    assert wandb.finished == 2
    assert "wandb: https://example.org/run" in capsys.readouterr().err


@pytest.mark.parametrize(("mode", "refused"), [("online", True), ("offline", False)])
def test_without_a_key_nobody_is_asked_for_one(
    tiny: Callable[..., TrainConfig], wandb: FakeWandb, mode: str, refused: bool
) -> None:
    wandb.has_key, wandb.mode = False, mode
    if refused:
        with pytest.raises(UserError, match="no key on this machine; run `wandb login`, or set WANDB_MODE=offline"):
            check_trackers(tiny(wandb="project"))
    else:
        check_trackers(tiny(wandb="project"))


def test_a_run_sends_every_line_and_one_that_cannot_leaves_no_folder(
    tiny: Callable[..., TrainConfig], wandb: FakeWandb
) -> None:
    run = pretrain(tiny(wandb="project", max_steps=4), quiet=True).folder
    wanted = [flatten(line) for line in read_metrics(run)]
    sent = [flatten(line) for line in wandb.logged]
    assert sent == [{key: value for key, value in line.items() if key != "time"} for line in wanted]
    wandb.has_key = False
    with pytest.raises(UserError, match="no key on this machine"):
        pretrain(tiny(wandb="project", out=str(run / "second")), quiet=True)
    assert not (run / "second").exists()


def test_nested_lines_become_flat_ones_of_numbers_and_texts() -> None:
    values = {"epochs": {"web": 0.4}, "loss": float("nan"), "grad_norm": None, "ok": True, "n": 3, "sample": "a"}
    assert flatten(values) == {"epochs/web": 0.4, "n": 3, "sample": "a"}


def test_tensorboard_shows_a_resumed_run_as_one(tiny: Callable[..., TrainConfig]) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = tiny(tensorboard=True)
    Path(config.out).mkdir()
    check_trackers(config)
    for session, (resume_step, last) in enumerate(((0, 5), (3, 7))):
        file = open_metrics(config, resume_step)
        for step in range(resume_step + 1, last + 1):
            file.write(step, **{"train/loss": float(session), "sample": "words"})
        file.close()
        time.sleep(1.1)  # event files are told apart by their second
    events = accumulator.EventAccumulator(str(Path(config.out) / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (1, 0.0), (2, 0.0), (3, 0.0), (4, 1.0), (5, 1.0), (6, 1.0), (7, 1.0),
    ]  # fmt: skip


def test_tensorboard_on_a_vanished_folder_is_one_line(
    tiny: Callable[..., TrainConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    out = tmp_path / "gone"
    (tmp_path / "file").write_text("")
    config = tiny(tensorboard=True, out=str(out))
    out.mkdir()
    (out / "tensorboard").write_text("in the way")
    file = open_metrics(config)
    file.write(1, loss=1.0)
    file.close()
    assert capsys.readouterr().err.count("\n") == 1
