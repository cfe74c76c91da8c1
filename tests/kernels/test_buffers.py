"""Tensors as the kernels see them."""

from __future__ import annotations

import numpy as np
import torch

from gpt2.kernels.buffers import bits


def test_kernels_see_the_tensors_own_memory_whatever_its_strides() -> None:
    tensor = torch.arange(24, dtype=torch.bfloat16).view(2, 3, 4)
    for part in (tensor, tensor[:, 1:], tensor.transpose(0, 2), tensor[0, 0, 0], tensor[:0]):
        assert np.array_equal(bits(part), part.contiguous().view(torch.uint16).numpy())
    bits(tensor)[1, 2, 3] = 0
    assert tensor[1, 2, 3] == 0


def test_memory_that_a_kernel_has_seen_can_still_be_freed() -> None:
    tensor = torch.ones(64, dtype=torch.bfloat16)  # as FSDP does with weights that it has gathered
    assert bits(tensor)[0] == 0x3F80
    tensor.untyped_storage().resize_(0)


def test_what_a_kernel_sees_outlives_the_tensors_name() -> None:
    seen = bits(torch.full((1 << 16,), 2.0, dtype=torch.bfloat16))
    torch.ones(1 << 16, dtype=torch.bfloat16)
    assert (seen == 0x4000).all()
