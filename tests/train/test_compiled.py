"""Compiling is decided by the run's length, said in one line, and left out where there is no compiler."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
import torch._dynamo
from torch import nn

from gpt2.distributed.launch import Place
from gpt2.distributed.parallelize import Recompute, parallelize
from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT
from gpt2.train import compiled
from gpt2.train.build import settle_compile
from gpt2.train.config import compose

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=32, context_length=16, vocab_size=50)
PEAK = 989e12
LONG = 1e15  # tokens


@pytest.mark.parametrize(
    ("mode", "device", "tokens", "line"),
    [
        ("off", "cuda", LONG, ""),
        ("auto", "cpu", LONG, ""),
        ("auto", "cuda", 1000.0, "not compiled: about 0 s of training would not repay it"),
        ("auto", "cuda", LONG, "not compiled: no compiler here"),
        ("on", "cpu", 1000.0, "not compiled: no compiler here"),
    ],
)
def test_why_not(
    mode: compiled.Mode, device: str, tokens: float, line: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(compiled, "why_not", lambda device: "no compiler here")
    assert not compiled.compile_blocks(GPT(CONFIG), mode, device, PEAK, tokens)
    said = capsys.readouterr().err
    assert said.startswith(line) and said.count("\n") == bool(line)


def test_a_long_run_on_a_gpu_is_compiled(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = GPT(CONFIG)
    done: list[object] = []
    monkeypatch.setattr(compiled, "why_not", lambda device: None)
    monkeypatch.setattr(type(model.h[0]), "compile", lambda block: done.append(block), raising=False)
    assert compiled.compile_blocks(model, "auto", "cuda", PEAK, LONG)
    assert done == list(model.h)
    assert capsys.readouterr().err.startswith("compiling the blocks")


@pytest.mark.parametrize(("seconds", "mode"), [(100.0, "off"), (8 * 3600.0, "on")])
def test_where_the_clock_ends_the_run_what_is_measured_is_what_is_trained(seconds: float, mode: str) -> None:
    config = compose(data="tokens", out="run", device="cuda", max_seconds=seconds)
    assert settle_compile(config, Place("cuda")).compile == mode
    for other in (replace(config, max_steps=9), replace(config, max_tokens=9), replace(config, compile="on")):
        assert settle_compile(other, Place("cuda")) == other
    assert settle_compile(config, Place("cpu")) == config


def test_a_processor_without_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    assert compiled.why_not("cpu") == "torch.compile needs a C++ compiler on a processor"


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: object) -> None:
        raise RuntimeError("no headers")

    monkeypatch.setattr(compiled.shutil, "which", lambda name: "/usr/bin/c++")
    monkeypatch.setattr(compiled.torch, "compile", broken)
    assert compiled.why_not("cpu") == "torch.compile fails here (RuntimeError)"


@pytest.mark.parametrize("pattern", [("dense",), ("dense", "banded"), ("banded", "strided")], ids=str)
def test_layers_of_a_kind_are_compiled_once(pattern: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "why_not", lambda device: None)
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="eager"))
    width, stride = 5 * ("banded" in pattern), 4 * ("strided" in pattern)
    shape = replace(CONFIG, attention_pattern=pattern, band_width=width, attention_stride=stride)
    graphs = []
    for n_layer in (6, 14):  # more layers than a function is compiled anew for
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model, ids = GPT(replace(shape, n_layer=n_layer)), torch.arange(32).view(2, 16)
        wanted = model(ids, ids)[0]
        with torch._dynamo.config.patch(allow_unspec_int_on_nn_module=False):  # and put back
            assert compiled.compile_blocks(model, "on", "cpu", PEAK, LONG)
            torch.testing.assert_close(model(ids, ids)[0], wanted)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1]


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_blocks_are_compiled_whatever_is_computed_again(recompute: Recompute) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = parallelize(GPT(CONFIG), None, recompute=recompute)
    for block in model.h:
        block.compile(backend="aot_eager", fullgraph=True)
    model.train()(torch.arange(16)[None]).sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
