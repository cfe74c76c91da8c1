"""`gpt2 plan`: any preset on any mesh, without the hardware."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TINY, make, write_model

from gpt2 import hardware
from gpt2.kernels import peak
from gpt2.model.presets import PRESETS
from gpt2.model.sizes import parameters

PUBLISHED = [name for name in PRESETS if name.startswith(("gpt2", "gpt3"))]


@pytest.fixture
def plan(gpt2: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """The report as --json gives it."""

    def run(*words: object) -> dict[str, Any]:
        done = gpt2("plan", *words, "--json")
        assert done.code == 0, done.err
        report: dict[str, Any] = json.loads(done.out)
        return report

    return run


@pytest.fixture
def still_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine as a processor of a teraflop with 16 GB free, nothing measured."""
    monkeypatch.setattr(peak, "device_peak", lambda device, dtype: 1e12)
    monkeypatch.setattr(hardware, "memory", lambda: (20 * 10**9, 16 * 10**9))


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_size_is_planned_for_a_thousand_gpus_in_seconds(
    plan: Callable[..., dict[str, Any]], name: str
) -> None:
    begin = time.process_time()
    report = plan(name, "--gpus", 1024, "--gpu", "h100", "--optimizer", "adamw")
    assert time.process_time() - begin < 20
    assert report["proposed"] is not None and report["fits"][report["recompute"]]
    assert report["held"]["counted"] == report["held"]["computed"]
    mesh = [report[name] for name in ("dp_replicate", "dp_shard", "tp")]
    assert mesh[0] * mesh[1] * mesh[2] == 1024
    if sys.platform == "linux":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8 * 2**20  # KiB


def test_175b_takes_the_flops_that_the_paper_says(plan: Callable[..., dict[str, Any]]) -> None:
    report = plan("gpt3-175b", "--gpus", 1024, "--mesh", "1x128x8", "--mfu", 0.5, "--price", 2)
    told = report["time"]
    assert told["tokens"] == 300e9 and told["flops"] == pytest.approx(3.14e23, rel=0.02)
    assert told["days"] == pytest.approx(told["flops"] / (1024 * 989e12 * 0.5) / 86400, rel=1e-3)
    assert told["cost"] == pytest.approx(told["device_hours"] * 2)
    assert told["tokens_per_second"] * told["step_seconds"] == pytest.approx(report["batch_tokens"])
    assert (report["dp_replicate"], report["dp_shard"], report["tp"]) == (1, 128, 8)
    none, selective, full = (report["bytes"][level]["activations"] for level in ("none", "selective", "full"))
    assert none > selective > full
    weights = report["bytes"]["none"]["weights"]
    assert (
        weights == 4 * report["held"]["counted"] == pytest.approx(4 * 174.6e9 / 1024, rel=0.03)
    )  # tp copies the embeddings


def test_bands_are_planned_with_the_work_and_the_memory_that_they_take(
    gpt2: Callable[..., Any], plan: Callable[..., dict[str, Any]]
) -> None:
    words, banded = ("gpt3-125m", "--gpu", "h100"), ("--attention_pattern", "dense,banded", "--band_width", 256)
    dense, found = plan(*words), plan(*words, *banded)
    assert found["parameters"] == dense["parameters"]
    assert dense["flops_per_token"] - found["flops_per_token"] == 6 * 12 * 768 * (1024 - 256 * (1 - 256 / 4096))
    assert found["time"]["days"] < dense["time"]["days"]
    assert "attention: dense, banded (256 tokens), repeated" in gpt2("plan", *words, *banded).out
    assert "attention:" not in gpt2("plan", *words).out


def test_float32_is_planned_at_the_speed_of_tf32(plan: Callable[..., dict[str, Any]]) -> None:
    words = ("gpt2-124m", "--gpu", "a100", "--tokens", "10B")
    short, long = plan(*words), plan(*words, "--dtype", "float32")
    assert (short["devices"]["peak"], long["devices"]["peak"]) == (312e12, 156e12)
    assert long["time"]["days"] == pytest.approx(2 * short["time"]["days"])
    assert plan(*words, "--dtype", "fp32")["time"] == long["time"]


def test_the_table_for_people_tells_the_same(gpt2: Callable[..., Any]) -> None:
    done = gpt2("plan", "gpt2-1558m", "--gpus", 8, "--gpu", "a100-40gb", "--tokens", "10B", "--optimizer", "adamw")
    assert done.code == 0, done.err
    told = ("1,557,611,200 parameters", "8 x A100 40GB", "gradients", "fits", "10,000,000,000 in", "Lambda's list")
    for words in (*told, "--dp_shard", "because: "):
        assert words in done.out


def test_a_mesh_that_does_not_fit_is_shown_beside_one_that_does(gpt2: Callable[..., Any]) -> None:
    out = gpt2("plan", "gpt3-13b", "--gpus", 64, "--mesh", "64x1x1", "--optimizer", "adamw").out
    assert "mesh 64 x 1 x 1" in out and "no " in out and "proposed: --dp_replicate 1" not in out.split("mesh")[0]
    assert "proposed: " in out


def test_what_fits_nowhere_is_said(gpt2: Callable[..., Any]) -> None:
    done = gpt2("plan", "gpt3-6.7b", "--gpu", "t4")
    assert done.code == 0 and "proposed: nothing fits" in done.out


def test_the_published_batch_grows_to_a_row_for_every_process(plan: Callable[..., dict[str, Any]]) -> None:
    assert plan("gpt2-1558m", "--gpus", 1024)["batch_tokens"] == 1024 * 1024  # 25 heads: no tensor parallelism
    assert plan("gpt3-13b", "--gpus", 96, "--mesh", "1x24x4")["batch_tokens"] == 1032 * 2048


@pytest.mark.usefixtures("still_machine")
def test_without_gpus_this_machine_is_planned(plan: Callable[..., dict[str, Any]]) -> None:
    report = plan("medium", "--device", "cpu", "--dtype", "float32", "--optimizer", "adamw")
    assert report["devices"]["count"] == 1 and report["devices"]["kind"] == "cpu"
    assert report["devices"]["memory"] == 16e9 and report["time"]["cost"] is None
    assert report["fits"]["none"] and report["bytes"]["none"]["saving"] > 0
    assert report["time"]["step_seconds"] == pytest.approx(report["flops_per_token"] * 8192 / 0.4e12)


@pytest.mark.usefixtures("still_machine")
def test_a_run_of_a_file_is_planned_with_its_datas_vocabulary(
    plan: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    from gpt2.data.shards import Meta

    Meta(vocab_size=99).save(tmp_path)
    file = tmp_path / "run.toml"
    file.write_text('max_steps = 10\ndevice = "cpu"\n[model]\nn_layer = 1\ncontext_length = 64\n')
    report = plan(file, "--data", tmp_path)
    assert report["config"]["vocab_size"] == 99 and report["time"]["steps"] == 10
    assert plan(file)["config"]["vocab_size"] == 50257


def test_a_growing_batch_takes_more_steps_for_the_same_tokens(plan: Callable[..., dict[str, Any]]) -> None:
    words = ("gpt2-124m", "--gpu", "h100", "--tokens", "10B")
    even, growing = plan(*words)["time"], plan(*words, "--batch_ramp_tokens", "1B")["time"]
    assert growing["steps"] > even["steps"] == -(-(10**10) // 524_288)
    assert growing["days"] == even["days"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("gpt3-175c",), "--preset gpt3-175c: unknown (did you mean 'gpt3-175b'?)"),
        (("gpt2-124m", "--gpu", "h1000"), "--gpu h1000: unknown (did you mean 'h100'?)"),
        (("gpt2-124m", "--gpu", "v100", "--dtype", "fp32"), "--dtype float32: how fast a V100 multiplies it"),
        (("gpt2-124m", "--gpus", 8, "--mesh", "2x2"), "--mesh 2x2: three numbers"),
        (("gpt2-124m", "--gpus", 8, "--mesh", "2x2x3"), "cannot form a mesh"),
        (("gpt2-124m", "--gpus", 8, "--mesh", "1x1x8"), "--tp 8 does not divide n_head = 12"),
        (("gpt2-124m", "--gpus", 8, "--batch_tokens", 7168), "a batch of 7 rows cannot be shared evenly"),
        (("gpt2-124m", "--gpus", 1, "--mfu", 1.5), "--mfu 1.5"),
        (("gpt2-124m", "--gpus", 1, "--tokens", "many"), "tokens = 'many': expected a whole number"),
        (("gpt2-124m", "--gpus", 1, "--n_layers", 3), "--n_layers: unknown setting (did you mean 'n_layer'?)"),
        ((), "name a CONFIG.toml or a PRESET"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    gpt2: Callable[..., Any], words: tuple[object, ...], message: str
) -> None:
    done = gpt2("plan", *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err and done.err.count("\n") == 1


def test_seconds_passes_and_a_model_to_go_on_from_are_counted(
    plan: Callable[..., dict[str, Any]], still_machine: None, tmp_path: Path, gpt2: Callable[..., Any]
) -> None:
    shape = ("--n_layer", 2, "--n_embd", 64, "--n_head", 2)
    short, long = (plan("small", *shape, "--max_seconds", seconds)["time"]["tokens"] for seconds in (10, 20))
    assert long == pytest.approx(2 * short, rel=1e-4)
    model = write_model(tmp_path / "model", make(TINY))
    (tmp_path / "more.toml").write_text("max_steps = 10\n")
    assert plan(tmp_path / "more.toml", "--init", model)["parameters"] == parameters(TINY)
    done = gpt2("plan", "small", "--epochs", 2)
    assert done.code == 2 and "of which text?" in done.err
