"""The limits that speeds are reported against."""

from __future__ import annotations

import pytest
import torch

from gpt2 import hardware
from gpt2.errors import UserError


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("Tesla T4", 65e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA RTX A1000", None),
        ("Some New Chip", None),
    ],
)
def test_peak_of_a_gpu_by_its_name(name: str, peak: float | None) -> None:
    assert hardware.table_peak(name, "bfloat16") == peak


def test_the_table_says_nothing_of_float32() -> None:
    assert hardware.table_peak("NVIDIA H100 PCIe", "float32") is None


@pytest.mark.parametrize(
    ("said", "name"),
    [("h100", "H100"), ("NVIDIA H100 PCIe", "H100 PCIe"), ("a100-40gb", "A100 40GB"), ("4090", "RTX 4090"),
     ("rtx_4090", "RTX 4090"), ("v100-32gb", "V100 32GB")],
)  # fmt: skip
def test_a_gpu_is_found_by_what_people_call_it(said: str, name: str) -> None:
    assert hardware.find_gpu(said).name == name


def test_an_unknown_gpu_is_refused_with_the_list() -> None:
    with pytest.raises(
        UserError, match=r"--gpu h1000: unknown \(did you mean 'h100'\?\); there are gb200, b200, .*mi300x"
    ):
        hardware.find_gpu("h1000")


def test_every_gpu_can_be_named_has_memory_and_says_where_its_price_is_from() -> None:
    for gpu in hardware.GPUS:
        assert hardware.find_gpu(gpu.name) == gpu and gpu.memory_bytes > 8 * 2**30
        assert (gpu.price is None) == (gpu.source == "")
        assert hardware.table_peak(f"NVIDIA {gpu.name}", "bfloat16") == gpu.peak
    assert not hardware.find_gpu("t4").has_bfloat16 and hardware.find_gpu("l4").has_bfloat16


def test_measured_limits_are_of_the_right_order() -> None:
    assert 1e8 < hardware.memory_bandwidth(seconds=0) < 1e13
    assert 1e8 < hardware.gemm_peak("cpu", "float32", seconds=0) < 1e15


def test_a_known_gpu_is_not_measured_and_an_unknown_one_is_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: ["NVIDIA L4", "Other"][int(device[-1])])
    monkeypatch.setattr(hardware, "gemm_peak", lambda device, dtype: measured.append(device) or 7.0)
    hardware.device_peak.cache_clear()
    assert hardware.device_peak("cuda:0", "bfloat16") == 121e12
    assert hardware.device_peak("cuda:1", "bfloat16") == hardware.device_peak("cuda:1", "bfloat16") == 7.0
    assert measured == ["cuda:1"]
    hardware.device_peak.cache_clear()


def test_best_time_takes_at_least_three_runs_after_a_warm_up() -> None:
    runs: list[int] = []
    assert hardware.best_time(lambda: runs.append(1), seconds=0) >= 0
    assert len(runs) == 4


def test_processor_and_memory_are_named() -> None:
    name, features = hardware.processor()
    total, free = hardware.memory()
    assert name and set(features) <= set(hardware.FEATURES)
    assert 0 <= free <= total
    assert hardware.cores() >= 1
