"""Device and number format: what is here is taken, what is not is refused with the way out."""

from __future__ import annotations

import io
import random
import sys

import numpy as np
import pytest
import torch

from gpt2 import runtime
from gpt2.errors import UserError


def without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_auto_prefers_cuda_then_mps_then_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpus(monkeypatch)
    assert runtime.pick_device() == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert runtime.pick_device() == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert runtime.pick_device() == "cuda"


@pytest.mark.parametrize("name", ["cuda", "mps", "tpu", "cuda:0", "", "CPU"])
def test_a_device_that_is_not_here_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpus(monkeypatch)
    with pytest.raises(UserError, match="--device"):
        runtime.pick_device(name)


@pytest.mark.parametrize("name", ["cuda:2", "cuda:x", "cuda:-1"])
def test_a_gpu_number_past_the_last_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert runtime.pick_device("cuda:1") == "cuda:1"
    with pytest.raises(UserError, match="cuda:0 to cuda:1"):
        runtime.pick_device(name)


@pytest.mark.parametrize(("name", "full"), [("bf16", "bfloat16"), ("fp32", "float32"), ("float16", "float16")])
def test_dtype_names(name: str, full: str) -> None:
    assert runtime.pick_dtype(name, "cpu") == full


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(UserError, match="--dtype int8"):
        runtime.pick_dtype("int8", "cpu")


@pytest.mark.parametrize(("capability", "dtype"), [((7, 0), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_auto_dtype_of_a_gpu_follows_its_generation(
    capability: tuple[int, int], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert runtime.pick_dtype("auto", "cuda") == dtype


@pytest.mark.parametrize(("has", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_auto_dtype_of_a_processor_is_bf16_only_in_hardware(
    has: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "cpu_multiplies_bf16", lambda: has)
    assert runtime.pick_dtype("auto", "cpu") == dtype


def test_rank_comes_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    here = runtime.Runtime.detect("cpu", "float32")
    assert (here.rank, here.local_rank, here.world_size, here.is_main) == (3, 1, 4, False)
    assert here.torch_dtype is torch.float32


def test_a_seed_fixes_all_three_generators() -> None:
    def draw() -> tuple[float, float, float]:
        runtime.seed_everything(2**40 + 7)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draw() == draw()


def test_talk_never_dies_on_a_console_that_is_not_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", console)
    runtime.say("naïve — ok")
    assert console.buffer.getvalue() == b"na?ve ? ok\n"  # type: ignore[attr-defined]


def test_without_a_gpu_s_driver_torch_is_not_even_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)
    monkeypatch.setattr(runtime.os.path, "exists", lambda path: False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "torch")
    assert runtime.pick_device() == "cpu"
    assert "torch" not in sys.modules
    monkeypatch.setattr(runtime.os.path, "exists", lambda path: path == "/proc/driver/nvidia")
    assert runtime.may_have_gpu()
