"""This process's random numbers as tensors, and back: torch's on each kind of device, numpy's and Python's."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_tensors(device: str) -> dict[str, Tensor]:
    """All that later draws depend on, uint8."""
    return torch_dice(device) | {"python": packed(random.getstate()), "numpy": packed(numpy_state())}


def torch_dice(device: str) -> dict[str, Tensor]:
    """What torch's draws depend on, dropout's among them: the processor's, and those of the device."""
    tensors = {"torch": torch.get_rng_state()}
    if device.startswith("cuda"):
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    elif device.startswith("mps"):
        tensors["mps"] = torch.mps.get_rng_state()
    return tensors


def restore_random(tensors: Mapping[str, Tensor], device: str) -> None:
    """Draw on from there; what another kind of device drew is left out."""
    put_torch_dice(tensors, device)
    version, numbers, gauss = unpacked(tensors["python"])
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(unpacked(tensors["numpy"]))


def put_torch_dice(tensors: Mapping[str, Tensor], device: str) -> None:
    """Put back what `torch_dice` gave."""
    torch.set_rng_state(tensors["torch"])
    if device.startswith("cuda") and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
    elif device.startswith("mps") and "mps" in tensors:
        torch.mps.set_rng_state(tensors["mps"])


def numpy_state() -> dict[str, Any]:
    """The state of numpy's global generator, in plain numbers."""
    state: dict[str, Any] = dict(np.random.get_state(legacy=False))
    return state | {"state": {"key": state["state"]["key"].tolist(), "pos": state["state"]["pos"]}}


def packed(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def unpacked(tensor: Tensor) -> Any:
    return json.loads(bytes(tensor.tolist()))
