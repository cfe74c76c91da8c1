"""The training benchmark runs end to end on a tiny shape, and its sides do see the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.slow
def test_quick_run() -> None:
    sides = ("--dtype", "float32", "--sides", "ours,float32", "--device", "cpu")
    command = [sys.executable, str(BENCHMARKS / "train.py"), "--quick", *sides]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "| gpt2 (ours) |" in ran.stdout and "loss after 5 steps" in ran.stdout and "peak memory" in ran.stdout


def test_one_side_at_a_time_and_one_that_dies_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a GPU, where the sides would not fit beside each other."""
    import train
    from peers.train_plain import Shape

    alive: list[str] = []

    class Fake:
        def __init__(self, kind: str, *words: object) -> None:
            assert not alive, "beside another"
            alive.append(kind)

        def __call__(self, name: str, count: int) -> dict[str, list[float]]:
            if alive == ["bf16"]:
                raise RuntimeError("its process ended")
            return {"seconds": [0.5] * count, "losses": [1.0] * count}

        def close(self) -> None:
            alive.clear()

    monkeypatch.setattr("peers.train_side.Side", Fake)
    shape = Shape(2, 2, 64, 64, 32, 4)
    monkeypatch.setattr(sys, "argv", ["train.py", "--device", "cpu", "--apart", "--dtype", "bfloat16"])
    sides = train.open_sides(["ours", "bf16", "autocast"], shape, tmp_path, train.arguments())
    assert train.alternate(sides, shape, rounds=3, count=2) == {"ours": [256.0] * 3, "autocast": [256.0] * 3}
    assert "plain loop, bfloat16 weights: left out (its process ended)" in capsys.readouterr().out
    assert not alive


def test_all_sides_start_from_the_same_loss(tmp_path: Path) -> None:
    from peers.train_plain import Shape
    from peers.train_worker import Side

    data = tmp_path / "tokens.npy"
    np.save(data, np.arange(2000, dtype=np.uint16) % 61)
    shape = Shape(2, 2, 64, 64, 32, 4)
    losses = {}
    for kind in ("ours", "autocast", "bf16", "float32"):
        losses[kind] = Side(kind, shape, "cpu", data, {}).steps(3)["losses"]
    assert losses["ours"] == pytest.approx(losses["autocast"], rel=5e-3)
    assert losses["autocast"] == pytest.approx(losses["float32"], rel=5e-3)
    assert losses["bf16"] == pytest.approx(losses["autocast"], rel=1e-2)


def test_tokens_fit_the_vocabulary() -> None:
    from peers.train_data import commonest

    ids = np.array([7, 7, 7, 3, 3, 9])
    assert commonest(ids, 3).tolist() == [0, 0, 0, 1, 1, 2]
    assert commonest(ids, 10) is ids


def test_the_peer_is_nanogpt_in_size() -> None:
    from peers.train_plain import NanoGPT, Shape

    with torch.device("meta"):
        model = NanoGPT(Shape(12, 12, 768, 50304, 1024, 2))
    assert sum(p.numel() for p in model.parameters()) == 124_373_760
