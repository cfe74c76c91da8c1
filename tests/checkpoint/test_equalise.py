"""Channels evened out: the function stays, and what an outlier channel would have spoiled is as good as without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_models import ODD, make, state_of

from gpt2.checkpoint.equalise import Equalised, factors, pairs
from gpt2.checkpoint.packed import pack_state, unpack_state
from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT

Arrays = dict[str, npt.NDArray[np.float32]]
TOKENS = torch.arange(3, 60)[None] * 7 % 257
SHAPES = pytest.mark.parametrize("changes", [{}, *ODD.values()], ids=["plain", *ODD])


def arrays_of(module: GPT) -> Arrays:
    state = {name: tensor.numpy().copy() for name, tensor in state_of(module).items()}
    return {
        name: a[:257] if name in ("wte.weight", "lm_head.weight", "lm_head.bias") else a for name, a in state.items()
    }


def logits(config: GPTConfig, arrays: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    module = GPT(config)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.zero_()
            parameter[: len(arrays[name])] = torch.tensor(arrays[name])
        return module.eval()(TOKENS)[0, :, :257].numpy()


def with_outliers(
    config: GPTConfig, arrays: Arrays, channels: tuple[int, ...] = (3, 17, 30), by: float = 30.0
) -> Arrays:
    """The same function, with three channels behind every norm far larger than the others."""
    found = {name: array.copy() for name, array in arrays.items()}
    for norm, matrix in pairs(config).items():
        found[matrix][:, list(channels)] /= by
        for name in (f"{norm}.weight", f"{norm}.bias"):
            if name in found:
                found[name][list(channels)] *= by
    return found


@SHAPES
def test_the_function_stays(changes: dict[str, Any]) -> None:
    module = make(scale=5.0, **changes)
    arrays = arrays_of(module)
    read = Equalised(module.config, with_outliers(module.config, arrays).__getitem__)
    evened = {name: read(name) for name in arrays}
    assert np.abs(logits(module.config, evened) - logits(module.config, arrays)).max() < 1e-4
    assert not np.allclose(evened["h.0.ln_1.weight"], arrays["h.0.ln_1.weight"])


@pytest.mark.parametrize("weights", ["int8", "int4", "int4-head"])
def test_a_copy_with_outlier_channels_is_packed_to_the_same_model(weights: str) -> None:
    module = make(scale=5.0, tie_head=False)
    arrays = arrays_of(module)
    plain = dict(unpack_state(pack_state(module.config, arrays, weights)))
    copy = dict(unpack_state(pack_state(module.config, with_outliers(module.config, arrays), weights)))
    for name in plain:
        assert np.allclose(plain[name], copy[name], rtol=0.02, atol=np.abs(plain[name]).max() / 100), name


def test_both_sides_of_a_pair_are_as_large_afterwards() -> None:
    gain, bias = np.array([3, 0, 0.5, 2], np.float32), np.array([4, 1, 0, 0], np.float32)
    matrix = np.array([[1, 2, 0.1, 0.25], [1, -2, 0.1, -0.25], [1, 2, -0.1, 0.25]], np.float32)
    m = factors(gain, bias, matrix)
    assert np.allclose(np.hypot(gain, bias) / m, np.abs(matrix[0]) * m)


def test_what_is_zero_or_not_finite_is_left_alone() -> None:
    gain, bias = np.array([0, 1, np.inf, 1], np.float32), np.array([0, 1, 0, 1], np.float32)
    matrix = np.array([[1, 0, 1, np.nan]], np.float32)
    assert factors(gain, bias, matrix).tolist() == [1, 1, 1, 1]


def test_the_order_in_memory_changes_nothing() -> None:
    matrix = np.random.default_rng(0).standard_normal((100, 300)).astype(np.float32)
    gain = np.linspace(0.1, 2, 300, dtype=np.float32)
    transposed = np.ascontiguousarray(matrix.T).T
    assert factors(gain, gain, matrix).tobytes() == factors(gain, gain, transposed).tobytes()


def test_a_tied_head_and_float_weights_are_not_touched() -> None:
    module = make()
    arrays = arrays_of(module)
    for weights in ("int8", "bfloat16"):
        model = pack_state(module.config, arrays, weights)
        assert np.array_equal(model.vectors["ln_f.weight"], arrays["ln_f.weight"])
        assert np.array_equal(model.vectors["h.0.ln_1.weight"], arrays["h.0.ln_1.weight"]) == (weights == "bfloat16")
