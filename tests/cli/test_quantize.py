"""`gpt2 quantize`: the folder writes, both losses are shown, and what cannot be done is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file, save_file
from tiny_models import make, write_model

from gpt2 import load
from gpt2.checkpoint import packed
from gpt2.checkpoint.packed import read_packed
from gpt2.inference.runners import select

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), make(scale=3.0))


@pytest.fixture
def quantize(gpt2: Callable[..., Any], folder: Path, tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "text.txt").write_text(TEXT)
    return lambda *words, out="out": gpt2(
        "quantize", folder, tmp_path / out, "--text", tmp_path / "text.txt", "--json", *words
    )


@pytest.mark.parametrize("weights", ["int8", "int4", "int4-head", "bfloat16"])
def test_the_folder_holds_the_weights_and_the_report_its_cost(
    quantize: Callable[..., Any], tmp_path: Path, folder: Path, weights: str
) -> None:
    ran = quantize("--weights", weights)
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert read_packed(tmp_path / "out").weights == report["weights"] == weights
    assert report["after"]["bytes"] == (tmp_path / "out" / "quantized.safetensors").stat().st_size
    assert report["before"]["bytes"] == (folder / "model.safetensors").stat().st_size
    assert report["after"]["bytes"] < report["before"]["bytes"]
    assert report["increase"] == pytest.approx(report["after"]["loss"] / report["before"]["loss"] - 1)
    assert 0 < abs(report["increase"]) < 0.05
    assert load(tmp_path / "out", device="cpu").generate("It was", max_new_tokens=4, seed=0)


def test_the_loss_before_is_the_modules_own(quantize: Callable[..., Any]) -> None:
    report = json.loads(quantize("--tokens", 40).out)
    ids = torch.tensor([list(TEXT.encode()[:41])])
    total, count = make(scale=3.0)(ids[:, :-1], ids[:, 1:])
    assert report["tokens"] == count == 40
    assert report["before"]["loss"] == pytest.approx(total.item() / 40, abs=1e-4)


def test_people_see_two_lines_and_the_text_at_hand_is_pythons_reference(
    gpt2: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    ran = gpt2("quantize", folder, tmp_path / "out", "--tokens", 100)
    before, after = ran.out.splitlines()
    assert before.startswith("before") and before.endswith("nats a token")
    assert after.startswith("after") and after.endswith("%, int8, on 100 tokens")
    assert "written in" in ran.err


def test_without_the_kernels_torch_measures(quantize: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    exact = json.loads(quantize(out="kernels").out)
    monkeypatch.setattr(select, "kernels_problem", lambda: "numba is not installed")
    ran = quantize(out="torch")
    report = json.loads(ran.out)
    assert "numba is not installed" in ran.err
    assert report["before"]["loss"] == pytest.approx(exact["before"]["loss"], abs=1e-4)
    assert report["after"]["loss"] == pytest.approx(exact["after"]["loss"], rel=2e-3)


def test_a_folder_that_is_there_is_not_written_over(quantize: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert quantize().code == 0  # an empty one is no loss
    again = quantize()
    assert again.code == 2 and "exists and is not empty" in again.err and again.err.count("\n") == 1
    assert "a file; name a new folder" in quantize(out="text.txt").err


def test_packed_weights_are_not_packed_again(
    quantize: Callable[..., Any], gpt2: Callable[..., Any], tmp_path: Path
) -> None:
    quantize()
    ran = gpt2("quantize", tmp_path / "out", tmp_path / "again", "--weights", "int4")
    assert ran.code == 2 and "holds int8 weights already; name the folder that it was made from" in ran.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weights", "int3"], "'int3' is not one of 'int8', 'int4', 'int4-head', 'bfloat16'"),
        (["--tokens", "0"], "--tokens 0: must be at least 1"),
        (["--text", "none.txt"], "none.txt: no such file"),
        (["--text", "short.txt"], "1 tokens; a loss needs at least 2"),
        (["--text", "latin.txt"], "not UTF-8 at byte 3"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    quantize: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("a")
    Path("latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    ran = quantize(*words)
    assert ran.code == 2 and message in ran.err and ran.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_model_and_damaged_weights_are_named(gpt2: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    assert "no such folder" in gpt2("quantize", "./nothing", tmp_path / "out").err
    bad = write_model(tmp_path / "bad")
    tensors = load_file(bad / "model.safetensors")
    tensors["transformer.h.0.mlp.c_fc.weight"][2, 2] = float("inf")
    save_file(tensors, bad / "model.safetensors")
    ran = gpt2("quantize", bad, tmp_path / "out")
    assert ran.code == 2 and "h.0.mlp.c_fc.weight holds numbers that are not finite" in ran.err


def test_what_was_half_written_is_removed(
    quantize: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed, "config_to_hf", full)
    ran = quantize()
    assert ran.code == 2 and "no space left on device" in ran.err
    assert list((tmp_path / "out").iterdir()) == []
