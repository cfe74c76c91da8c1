"""`gpt2 doctor`: what it finds, and what it says of what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2 import hardware
from gpt2.cli import doctor


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "memory_bandwidth", lambda place: 40e9)
    monkeypatch.setattr(hardware, "gemm_peak", lambda place, dtype: {"float32": 200e9}.get(dtype, 400e9))


def test_json_is_one_object_with_every_part(gpt2: Callable[..., Any]) -> None:
    ran = gpt2("doctor", "--json")
    facts = json.loads(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert set(facts) == {"versions", "machine", "device", "writing", "speed", "settings", "missing"}
    assert facts["speed"]["cpu"] == {"memory_bandwidth": 40e9, "float32": 200e9, "bfloat16": 400e9}
    assert facts["settings"]["HF_HUB_OFFLINE"] == "1"


def test_report_gives_speeds_with_units_and_what_they_allow(gpt2: Callable[..., Any]) -> None:
    out = gpt2("doctor").out
    assert "40.0 GB/s (so 124M in float32 writes at most 80 tokens/s" in out
    assert "400 GFLOP/s" in out
    assert "HF_HUB_OFFLINE" in out


def test_a_missing_requirement_is_named_with_its_cure_and_code_2(
    monkeypatch: pytest.MonkeyPatch, gpt2: Callable[..., Any]
) -> None:
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: None if name in ("numba", "pyarrow") else real(name))
    ran = gpt2("doctor")
    assert ran.code == 2
    assert "numba (required): pip install numba" in ran.out
    assert "pyarrow, to read Parquet: pip install pyarrow" in ran.out


def test_a_torch_that_does_not_load_is_reported_not_raised(
    monkeypatch: pytest.MonkeyPatch, gpt2: Callable[..., Any]
) -> None:
    def broken() -> None:
        raise ImportError("libtorch.so: cannot open")

    monkeypatch.setattr(doctor, "device", broken)
    ran = gpt2("doctor")
    assert ran.code == 2
    assert "a torch that loads (required): libtorch.so: cannot open" in ran.out


@pytest.mark.parametrize(("cuda", "words"), [(None, "built without CUDA"), ("13.0", "nvidia-smi shows")])
def test_a_driver_that_torch_does_not_use_is_named(cuda: str | None, words: str) -> None:
    facts = {
        "versions": dict.fromkeys((*doctor.CORE, *doctor.OPTIONAL), "1"),
        "machine": {"nvidia_driver": True, "c_compiler": "/usr/bin/cc"},
        "device": {"gpus": [], "torch_cuda": cuda},
    }
    found = {item["what"]: item["how"] for item in doctor.missing(facts)}
    assert words in found["the use of the NVIDIA GPU"]


def test_weights_in_the_cache_are_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {
        "versions": dict.fromkeys((*doctor.CORE, *doctor.OPTIONAL), "1"),
        "machine": {"nvidia_driver": False, "c_compiler": None},
        "device": {"gpus": [], "torch_cuda": None},
    }
    monkeypatch.delenv("GPT2_TOKENIZER", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert any("GPT-2's vocabulary" in item["what"] for item in doctor.missing(facts))
    (tmp_path / "models--openai-community--gpt2").mkdir()
    assert [item["what"] for item in doctor.missing(facts)] == ["a C compiler, for torch.compile on the processor"]


def test_hub_cache_follows_hugging_face_s_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert doctor.hub_cache() == Path("~/.cache/huggingface/hub").expanduser()
    monkeypatch.setenv("HF_HOME", "/h")
    assert doctor.hub_cache() == Path("/h/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "/c")
    assert doctor.hub_cache() == Path("/c")


def test_what_writes_here_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpt2.inference.runners import select

    monkeypatch.setenv("GPT2_THREADS", "3")
    facts = doctor.writing("cpu")
    assert (facts["runner"], facts["threads"], facts["weights"]) == ("kernels", 3, "int8")
    assert Path(facts["cache"]).name.startswith("kernels-")
    rows = doctor._writing_rows(facts)
    assert rows["runner"].startswith("the processor's kernels")
    assert rows["compiled"].endswith(facts["cache"])
    monkeypatch.setattr(select, "kernels_problem", lambda: "numba is not installed")
    assert doctor._writing_rows(doctor.writing("cpu")) == {"runner": "torch (numba is not installed)"}


def test_without_vector_instructions_the_row_says_so() -> None:
    facts = {"runner": "kernels", "instructions": [], "threads": 1, "weights": "int8", "cache": "c", "compiled": False}
    rows = doctor._writing_rows(facts)
    assert rows["runner"].endswith("plain vectors (no AVX2, VNNI or BF16)")
    assert rows["compiled"].startswith("not yet")
    assert doctor.writing("cuda") == {"runner": "torch", "reason": "the device is cuda"}
