"""Runs of several processes: on every mesh the losses of one alone; resumed by as many and fewer; stopped as one."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from forked_ranks import MESHES, TUNINGS
from safetensors.numpy import load_file
from tiny_models import make, write_model

from gpt2.checkpoint.find import find_folder
from gpt2.checkpoint.hf_config import read_config
from gpt2.checkpoint.native import load_module
from gpt2.checkpoint.train_state import newest_good_step

TRACE = ("step", "tokens", "train/loss", "grad_norm", "learning_rate")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="the processes are forked")]


@dataclass(frozen=True)
class Runs:
    folder: Path
    codes: dict[str, list[int]]
    seconds: float

    def trace(self, name: str) -> list[list[float]]:
        lines = [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]
        return [[line[key] for key in TRACE] for line in lines if "train/loss" in line]


@pytest.fixture(scope="module")
def runs(tokens: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("ranks")
    write_model(folder / "base", make(n_embd=32, context_length=32))
    pairs = [{"prompt": f"{n}:", "completion": f" {n * n} {'again ' * (n % 3)}"} for n in range(40)]
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    command = [sys.executable, str(root / "tests" / "forked_ranks.py"), str(folder), str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    return Runs(folder, **json.loads(done.stdout.splitlines()[-1]))


def test_four_processes_go_on_bit_for_bit(runs: Runs) -> None:
    assert runs.codes["whole"] == runs.codes["on4"] == [0] * 4
    assert len(runs.trace("whole")) == 8
    assert runs.trace("on4") == runs.trace("whole")


@pytest.mark.parametrize("count", [2, 1])
def test_fewer_processes_go_on_with_the_same_losses(runs: Runs, count: int) -> None:
    assert runs.codes[f"on{count}"] == [0] * count
    for mine, whole in zip(runs.trace(f"on{count}"), runs.trace("whole"), strict=True):
        assert mine == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_has_the_losses_of_one_process(runs: Runs, mesh: str) -> None:
    assert runs.codes[mesh] == [0] * math.prod(MESHES[mesh])
    mine, alone = (runs.trace(name) for name in (mesh, "alone"))
    assert len(alone) == 20
    for step, (found, expected) in enumerate(zip(mine, alone, strict=True), 1):
        assert found == pytest.approx(expected, rel=1e-5), f"step {step}"


def test_muon_s_steps_are_the_same_where_matrices_are_shared_twice(runs: Runs) -> None:
    """Shares of halves of layers are put together for it; a checkpoint of them is gone on with by four and by one."""
    assert runs.codes["muon_alone"] == runs.codes["muon_on1"] == [0]
    assert runs.codes["muon_mesh"] == runs.codes["muon_on4"] == [0] * 4
    mesh, alone = runs.trace("muon_mesh"), runs.trace("muon_alone")
    assert len(alone) == 6 and runs.trace("muon_on4") == mesh
    for name in ("muon_mesh", "muon_on1"):
        for found, expected in zip(runs.trace(name), alone, strict=True):
            assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("run", [name for name, (count, _) in TUNINGS.items() if count > 1])
def test_two_processes_tune_a_model_as_one_does(runs: Runs, run: str) -> None:
    method = run.partition("_")[0]
    alone = f"{method}_alone"
    assert (runs.codes[run], runs.codes[alone]) == ([0, 0], [0])
    mine, whole = runs.trace(run), runs.trace(alone)
    assert len(whole) == 10 and whole[-1][2] < whole[0][2]
    for found, expected in zip(mine, whole, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    file = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    learned, expected = (load_file(find_folder(runs.folder / name) / file) for name in (run, alone))
    assert learned.keys() == expected.keys()
    assert all(np.allclose(learned[name], expected[name], atol=1e-4) for name in expected)


@pytest.mark.parametrize(
    ("run", "mesh"),
    [
        ("fsdp4", "dp_replicate 1 x dp_shard 4 x tp 1"),
        ("whole", "dp_replicate 1 x dp_shard 4 x tp 1"),
        ("on2", "dp_replicate 1 x dp_shard 2 x tp 1"),
    ],
)
def test_the_mesh_that_was_left_to_choose_is_written_down(runs: Runs, run: str, mesh: str) -> None:
    assert mesh in (runs.folder / run / "report.html").read_text(encoding="utf-8")


def test_processes_of_which_one_ran_out_of_memory_go_on_with_half_the_rows(runs: Runs) -> None:
    assert runs.codes["short"] == [2, 2] and runs.codes["short_again"] == [0, 0]
    assert json.loads((runs.folder / "short" / "out_of_memory.json").read_text())["rows"] == 2
    assert len(runs.trace("short")) == 8
    for mine, whole in zip(runs.trace("short"), runs.trace("whole"), strict=True):
        assert mine == pytest.approx(whole, rel=1e-5)
    newest = newest_good_step(runs.folder / "short")
    assert newest is not None and '"halvings": 1' in (newest / "train_state" / "state.json").read_text()


def test_processes_save_what_was_before_a_leap_and_make_up_for_a_last_validation(runs: Runs) -> None:
    assert runs.codes["leap"] == [2, 2] and runs.codes["leap_left"] == [3, 4]
    assert runs.codes["leap_again"] == runs.codes["leap_last"] == [0, 0]
    for mine, whole in zip(runs.trace("leap"), runs.trace("whole"), strict=True):
        assert mine == pytest.approx(whole, rel=1e-5)
    newest = newest_good_step(runs.folder / "leap")
    assert newest is not None and '"validated": 8' in (newest / "train_state" / "state.json").read_text()
    lines = [json.loads(line) for line in (runs.folder / "leap" / "metrics.jsonl").read_text().splitlines()]
    assert [line["val_targets"] for line in lines if line["step"] == 8 and "val/loss" in line] == [900]


def test_two_processes_in_bfloat16_go_on_bit_for_bit_from_an_evaluated_step(runs: Runs) -> None:
    assert runs.codes["half"] == runs.codes["half_again"] == [0, 0]
    assert len(runs.trace("half")) == 6
    assert runs.trace("half_again") == runs.trace("half")


def test_a_signal_to_one_of_four_makes_all_save_and_leave_in_peace(runs: Runs) -> None:
    assert runs.codes["stopped"] == [0] * 4
    assert runs.seconds < 30
    newest = newest_good_step(runs.folder / "stopped")
    assert newest is not None and int(newest.name[5:]) == runs.trace("stopped")[-1][0]


def test_their_step_is_a_model_folder(runs: Runs) -> None:
    last = runs.folder / "whole" / "last"
    assert load_module(last, read_config(last)).config.n_embd == 32
