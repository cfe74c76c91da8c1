"""The runs in configs/: each is read, can be planned, and says its command, cost and expected result truly."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpt2.distributed.mesh import check_model, mesh_sizes
from gpt2.model.presets import PRESETS
from gpt2.model.sizes import training_flops_per_token
from gpt2.train.config import TrainConfig, compose
from gpt2.train.corpus import parse_part

FOLDER = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(FOLDER.glob("*.toml"))
SMALL = {"laptop_4m": 4096, "laptop_12m": 4096, "gpt3_nano": 2048}
GPT3 = {  # Table 2.1: preset, tokens of a batch, learning rate
    "gpt3_125m": ("gpt3-125m", 0.5e6, 6.0e-4),
    "gpt3_350m": ("gpt3-350m", 0.5e6, 3.0e-4),
    "gpt3_760m": ("gpt3-760m", 0.5e6, 2.5e-4),
    "gpt3_xl": ("gpt3-xl", 1e6, 2.0e-4),
    "gpt3_xl_2048": ("gpt3-xl-2048", 1e6, 2.0e-4),
    "gpt3_2.7b": ("gpt3-2.7b", 1e6, 1.6e-4),
    "gpt3_6.7b": ("gpt3-6.7b", 2e6, 1.2e-4),
    "gpt3_13b": ("gpt3-13b", 2e6, 1.0e-4),
    "gpt3_175b": ("gpt3-175b", 3.2e6, 0.6e-4),
}


def read(name: str) -> tuple[str, TrainConfig]:
    path = FOLDER / f"{name}.toml"
    config = compose(path, data="data", out="run", vocab_size=SMALL.get(name, 50257))
    return path.read_text(encoding="utf-8").partition("\n\n")[0], config


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_is_read_and_its_header_says_command_cost_and_result(path: Path) -> None:
    header, config = read(path.stem)
    config.check_rows()
    assert f"configs/{path.name}" in header
    assert "# Cost: " in header and "# Expected: " in header


@pytest.mark.parametrize("name", ["gpt2_124m", *GPT3, "laptop_4m", "laptop_12m", "gpt3_nano"])
def test_the_flops_are_those_of_the_model(name: str) -> None:
    header, config = read(name)
    stated = re.search(r"([\d.]+) GFLOPs a token", header)
    assert stated is not None
    each = training_flops_per_token(config.model)
    assert float(stated[1]) == pytest.approx(each / 1e9, rel=0.02)
    if name in GPT3 or name == "gpt2_124m":
        assert config.max_tokens is not None
        total = re.search(r"([\d.]+e\d+) in all: ([\d.,]+) hours", header)
        assert total is not None
        assert float(total[1]) == pytest.approx(each * config.max_tokens, rel=0.02)
        assert float(total[2].replace(",", "")) == pytest.approx(
            each * config.max_tokens / (0.45 * 989e12) / 3600, rel=0.02
        )
        steps = re.search(r"([\d,]+) steps", header)
        assert steps is not None and int(steps[1].replace(",", "")) == config.ramp.steps_for(config.max_tokens)


@pytest.mark.parametrize("name", GPT3)
def test_gpt3s_recipe_is_the_papers(name: str) -> None:
    _, config = read(name)
    preset, batch, rate = GPT3[name]
    printed = PRESETS[preset]
    assert config.model == replace(printed, attention_pattern=("dense", "banded"), band_width=256)
    assert config.batch_tokens == pytest.approx(batch, rel=0.05) and config.max_tokens == 300e9
    ramp = config.ramp
    assert ramp.rows_at(0) * 2048 == 32_768 and config.batch_rows * 2048 == config.batch_tokens
    assert 4e9 <= ramp.levels[-1].tokens < 12e9 + config.batch_tokens
    optim = config.optim
    assert (optim.optimizer, optim.learning_rate, optim.betas, optim.eps) == ("adamw", rate, (0.9, 0.95), 1e-8)
    assert (config.grad_clip, optim.weight_decay, config.pack) == (1.0, 0.1, "stream")
    assert config.mixture == read("gpt3_125m")[1].mixture
    last = replace(config, max_steps=ramp.steps_for(config.max_tokens))
    for tokens, rate in ((187_500_000, 0.5), (375_000_000, 1.0), (260_000_000_000, 0.1), (299_000_000_000, 0.1)):
        assert last.rate_at(ramp.nearest_step(tokens)) == pytest.approx(rate, abs=0.01)


def test_the_recipes_differ_only_in_what_table_2_1_says() -> None:
    def rest(name: str) -> TrainConfig:
        _, config = read(name)
        first = read("gpt3_125m")[1]
        optim = replace(config.optim, learning_rate=0.1)
        same = ("model", "preset", "batch_tokens", "batch_ramp_tokens")
        return replace(config, optim=optim, **{key: getattr(first, key) for key in same})

    assert all(rest(name) == rest("gpt3_125m") for name in GPT3)


@pytest.mark.parametrize("name", GPT3)
def test_the_headers_command_lays_its_batches_out_evenly(name: str) -> None:
    header, _ = read(name)
    command = re.search(r"torchrun (?:--nnodes (\d+) )?--nproc-per-node 8 .*? \\\n# +(--data .*)", header)
    assert command is not None
    config = compose(FOLDER / f"{name}.toml", shlex.split(command[2]), vocab_size=50257)
    config.check_rows()
    sizes = mesh_sizes(8 * int(command[1] or 1), config.dp_replicate, config.dp_shard, config.tp)
    check_model(sizes, config.model)
    assert config.batch_rows % sizes.data_size == config.ramp.rows_at(0) % sizes.data_size == 0
    assert f"--gpus {sizes.world_size} " in header


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_gpt2_plan_reads_it(path: Path, gpt2: Callable[..., Any]) -> None:
    done = gpt2("plan", path, "--gpu", "h100", "--gpus", 1024 if path.stem == "gpt3_175b" else 8, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["flops_per_token"] == training_flops_per_token(
        replace(compose(path, data="data", out="run").model, vocab_size=50257)
    )


def test_nano_is_the_recipe_scaled_down() -> None:
    _, config = read("gpt3_nano")
    large = read("gpt3_125m")[1]
    for name in ("grad_clip", "pack", "on_outlier"):
        assert getattr(config, name) == getattr(large, name)
    assert replace(config.optim, learning_rate=6e-4) == large.optim
    assert config.model.attention_pattern == ("dense", "banded")
    assert (config.model.context_length, config.model.band_width) == (2048, 256)
    assert config.max_tokens is not None and config.schedule.decay_tokens is not None
    assert config.schedule.decay_tokens / config.max_tokens == pytest.approx(260 / 300, rel=0.01)
    assert config.ramp.rows_at(0) < config.batch_rows and config.schedule.min_lr == 0.1


def test_the_mixtures_epochs_are_the_headers() -> None:
    header, config = read("gpt3_125m")
    rows = re.findall(r"\| (\w+) +\| +(\d+)B \| +([\d.]+) \| +([\d.]+) \|", header)
    parts = [parse_part(text) for text in config.mixture]
    assert [(Path(folder).name, float(weight)) for folder, weight in parts] == [(row[0], float(row[2])) for row in rows]
    total = sum(weight for _, weight in parts)
    assert config.max_tokens is not None
    for (_, weight), (_, billions, _, epochs) in zip(parts, rows, strict=True):
        assert float(weight / total) * config.max_tokens / (int(billions) * 1e9) == pytest.approx(
            float(epochs), abs=6e-3
        )
