"""The runs in configs/: each is read, can be planned, and says its command, cost and expected result truly."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gpt2.model.sizes import training_flops_per_token
from gpt2.train.config import TrainConfig, compose
from gpt2.train.corpus import parse_part

FOLDER = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(FOLDER.glob("*.toml"))
SMALL = {"laptop_4m": 4096, "laptop_12m": 4096}


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


@pytest.mark.parametrize("name", ["gpt2_124m", "gpt3_125m", "laptop_4m", "laptop_12m"])
def test_the_flops_are_those_of_the_model(name: str) -> None:
    header, config = read(name)
    stated = re.search(r"([\d.]+) GFLOPs a token", header)
    assert stated is not None
    each = training_flops_per_token(config.model)
    assert float(stated[1]) == pytest.approx(each / 1e9, rel=0.02)
    if config.max_tokens is not None:
        total = re.search(r"([\d.]+e\d+) in all: ([\d.]+) hours", header)
        assert total is not None
        assert float(total[1]) == pytest.approx(each * config.max_tokens, rel=0.02)
        assert float(total[2]) == pytest.approx(each * config.max_tokens / (0.45 * 989e12) / 3600, rel=0.02)
        steps = re.search(r"([\d,]+) steps", header)
        assert steps is not None and int(steps[1].replace(",", "")) == config.ramp.steps_for(config.max_tokens)


def test_gpt3s_recipe_is_the_papers() -> None:
    _, config = read("gpt3_125m")
    ramp = config.ramp
    assert ramp.rows_at(0) * 2048 == 32_768 and config.batch_rows * 2048 == 524_288
    assert 4e9 <= ramp.levels[-1].tokens < 4e9 + 524_288


def test_the_mixtures_epochs_are_the_headers() -> None:
    header, config = read("gpt3_mixture")
    rows = re.findall(r"\| (\w+) +\| +(\d+)B \| +([\d.]+) \| +([\d.]+) \|", header)
    parts = [parse_part(text) for text in config.mixture]
    assert [(Path(folder).name, float(weight)) for folder, weight in parts] == [(row[0], float(row[2])) for row in rows]
    total = sum(weight for _, weight in parts)
    assert config.max_tokens is not None
    for (_, weight), (_, billions, _, epochs) in zip(parts, rows, strict=True):
        assert float(weight / total) * config.max_tokens / (int(billions) * 1e9) == pytest.approx(
            float(epochs), abs=6e-3
        )
