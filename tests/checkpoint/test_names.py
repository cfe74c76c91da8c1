"""Names and shapes without a module."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import ODD, TINY

from gpt2.checkpoint.names import expected_shapes
from gpt2.model.gpt import GPT


@pytest.mark.parametrize("changes", [{}, *ODD.values(), {"n_inner": 100, "head_dim": 24, "vocab_size": 130}])
def test_expected_shapes_are_the_modules_without_its_padding_rows(changes: dict[str, object]) -> None:
    config = replace(TINY, **changes)
    with torch.device("meta"):
        module = GPT(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.named_parameters()}
    for name in shapes.keys() & {"wte.weight", "lm_head.weight", "lm_head.bias"}:
        shapes[name] = (config.vocab_size, *shapes[name][1:])
    assert list(expected_shapes(config).items()) == list(shapes.items())
