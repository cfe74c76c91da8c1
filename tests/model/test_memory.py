"""The memory model against what autograd keeps and what a process holds."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpt2.kernels import features, ops
from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT
from gpt2.model.memory import (
    Pass,
    activation_bytes,
    kept_block_bytes,
    micro_batch,
    most_rows,
    muon_bytes,
    training_bytes,
    whole,
)
from gpt2.model.presets import PRESETS
from gpt2.runtime import pick_dtype
from gpt2.train import validate
from gpt2.train.fused_blocks import fuse_blocks

BANDED = {"attention_pattern": ("dense", "banded"), "band_width": 32}
STRIDED = {"attention_pattern": ("banded", "strided"), "band_width": 32, "attention_stride": 8}


def kept(config: GPTConfig, step: Pass) -> int:
    """Bytes of all memory that a forward pass on the processor leaves for the backward pass, weights not counted."""
    model = GPT(config).to(getattr(torch, step.dtype))
    if step.spares and ops.have_kernels():
        fuse_blocks(model)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no other takes its address
        return tensor

    ids = torch.randint(config.vocab_size, (step.rows, step.length))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(ids, ids)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize(("dtype", "kernels"), [("float32", False), ("float32", True), ("bfloat16", False)], ids=str)
@pytest.mark.parametrize("length", [64, 600])  # attention keeps its probabilities, or makes them again
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head_dim": 24},
        {"n_inner": 96, "bias": False},
        {"activation": "gelu_erf"},
        BANDED,
        STRIDED,
        STRIDED | {"head_dim": 24},
    ],
)
def test_activations_are_what_autograd_keeps(
    dtype: str, kernels: bool, length: int, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "by_floats", lambda: kernels)
    base: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 64, "vocab_size": 1000, "context_length": length}
    config, step = GPTConfig(**(base | changes)), Pass(2, length, dtype)
    assert activation_bytes(config, step) == pytest.approx(kept(config, step), rel=0.01)


@pytest.mark.skipif(pick_dtype("auto", "cpu") != "bfloat16", reason="needs a processor that multiplies bfloat16")
def test_heads_that_tiles_fit_keep_no_probabilities() -> None:
    config = GPTConfig(n_layer=3, n_head=2, n_embd=128, vocab_size=500, context_length=256)
    step = Pass(2, 256)
    assert activation_bytes(config, step) == pytest.approx(kept(config, step), rel=0.01)


@pytest.mark.parametrize("kernels", [False, True])
def test_states_are_so_many_bytes_a_parameter(kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "by_floats", lambda: kernels)
    config, step = PRESETS["gpt2-124m"], Pass(4, dtype="float32")
    count = whole(config).all
    held = training_bytes(config, step)
    assert held.weights + held.gradients + held.optimizer == 16 * count
    assert held.total == sum(vars(held).values()) and held.saving == 0
    short = training_bytes(config, replace(step, dtype="bfloat16", micro_steps=2), saving=True)
    assert short.weights + short.gradients + short.optimizer >= 18 * count
    hidden = whole(config).hidden
    assert short.saving == 12 * count + 4 * hidden
    assert training_bytes(config, step, "muon").optimizer == held.optimizer - 4 * hidden


def test_muon_gets_float32_copies_of_short_gradients_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "by_floats", lambda: True)
    config = PRESETS["gpt2-124m"]
    for dtype, micro_steps, copied in (("float32", 1, 0), ("bfloat16", 1, 4), ("bfloat16", 2, 0)):
        step = Pass(4, dtype=dtype, micro_steps=micro_steps)  # type: ignore[arg-type]
        muon, adamw = (training_bytes(config, step, optimizer).working for optimizer in ("muon", "adamw"))
        stacks = muon_bytes(config, step, whole(config), mesh=False)
        assert step.fused and muon - adamw == stacks + copied * whole(config).hidden


def test_recomputation_and_tensor_parallelism_keep_less() -> None:
    config, step = PRESETS["gpt3-6.7b"], Pass(1, device="cuda")
    none, selective, full = (
        activation_bytes(config, replace(step, recompute=level)) for level in ("none", "selective", "full")
    )
    assert full < selective < none
    assert activation_bytes(config, replace(step, tp=8)) < none
    # Korthikanti et al. 2022, section 4.1: 34 bytes a number of the residual stream, of which dropout's masks (2) and
    # inputs kept twice are none of ours: 4 C + 4 A + 2 F numbers of 2 bytes.
    assert kept_block_bytes(config, step) / (2048 * 4096) == pytest.approx(32, rel=0.01)


def test_the_evaluations_batch_is_the_one_planned_for() -> None:
    from gpt2.model import memory

    assert memory.EVAL_TOKENS == validate.BATCH_TOKENS


@given(st.integers(0, 60), st.integers(0, 60))
def test_most_rows_finds_the_last_that_fits(last: int, limit: int) -> None:
    assert most_rows(lambda rows: rows <= last, limit) == min(last, limit)


@given(st.integers(1, 64), st.integers(10**8, 10**11))
def test_a_micro_batch_fits_and_divides_the_work_evenly(batch_rows: int, room: int) -> None:
    config, step = PRESETS["gpt2-124m"], Pass(1)
    rows = micro_batch(config, step, "adamw", batch_rows, room)
    steps = -(-batch_rows // rows)
    needed = training_bytes(config, replace(step, rows=rows, micro_steps=steps), "adamw", saving=True)
    assert rows == 1 or needed.total - needed.base <= room
    assert 1 <= rows <= batch_rows
    assert rows * (steps - 1) < batch_rows and -(-batch_rows // steps) == rows


# Trains and evaluates a small model once to load everything, then a larger one; prints what that one added at most.
CHILD = """
import json, resource, sys
from pathlib import Path
import torch
from gpt2.kernels import features
from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT
from gpt2.train.config import OptimConfig
from gpt2.train.optim import Optimizer
from gpt2.train.validate import BATCH_TOKENS
from gpt2.train.fused_weights import make_weights

features.by_floats = lambda: sys.argv[2] == "True"

def train(rows, **shape):
    config = GPTConfig(**shape)
    weights = make_weights(GPT(config), torch.float32)
    optimizer = Optimizer(weights.master, OptimConfig(optimizer="adamw"))
    for _ in range(2):
        ids = torch.randint(config.vocab_size, (rows, config.context_length))
        weights.clear_gradients()
        weights.backward(weights.worker(ids, ids)[0])
        weights.clip(1.0)
        optimizer.step(1.0)
        weights.publish()
    with torch.no_grad():  # an evaluation
        ids = torch.randint(config.vocab_size, (BATCH_TOKENS["cpu"] // config.context_length, config.context_length))
        weights.worker(ids, ids)

train(1, n_layer=1, n_head=2, n_embd=32, vocab_size=64, context_length=16)
before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
train(32, **json.loads(sys.argv[1]))
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
print(int(peak.split()[1]) * 1024 - before)  # not ru_maxrss: that begins with the peak of the process that started it
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's account of a process's peak")
@pytest.mark.parametrize(("kernels", "within"), [(False, 0.15), (True, 0.2)])
def test_a_training_process_holds_what_is_predicted(
    kernels: bool, within: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many rows: what evaluations find no room in counts twice with kernels, and is much of it with few."""
    monkeypatch.setattr(features, "by_floats", lambda: kernels)
    shape: dict[str, Any] = {"n_layer": 4, "n_head": 4, "n_embd": 256, "vocab_size": 8000, "context_length": 128}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(shape), str(kernels)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    guess = training_bytes(GPTConfig(**shape), Pass(32, dtype="float32"))
    assert guess.total - guess.base == pytest.approx(int(done.stdout), rel=within)
