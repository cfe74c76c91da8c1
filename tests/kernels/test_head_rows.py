"""The head's loss where some tokens do not count, or the head is frozen: the same numbers with less work."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gpt2.kernels import ops
from gpt2.model.config import IGNORE_INDEX


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("rows", [1, 63, 300])
def test_loss_and_gradients_are_the_plain_ones(dtype: torch.dtype, trained: bool, share: float, rows: int) -> None:
    draw = torch.Generator().manual_seed(rows)
    hidden, head = torch.randn(rows, 64, generator=draw), torch.randn(128, 64, generator=draw) / 8
    targets = torch.randint(0, 100, (rows,), generator=draw)
    targets[torch.rand(rows, generator=draw) >= share] = IGNORE_INDEX
    mine = [hidden.to(dtype).requires_grad_(), head.to(dtype).requires_grad_(trained)]
    plain = [tensor.detach().float().requires_grad_() for tensor in mine]
    loss = ops.head_loss(mine[0], mine[1], None, targets, IGNORE_INDEX, 100)
    wanted = F.cross_entropy(plain[0] @ plain[1][:100].T, targets, ignore_index=IGNORE_INDEX, reduction="sum")
    loss.backward()  # type: ignore[no-untyped-call]
    wanted.backward()  # type: ignore[no-untyped-call]
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(loss, wanted, rtol=close["rtol"], atol=close["atol"])
    assert mine[0].grad is not None and plain[0].grad is not None
    torch.testing.assert_close(mine[0].grad.float(), plain[0].grad, **close)
    if trained:
        assert mine[1].grad is not None
        torch.testing.assert_close(mine[1].grad.float(), plain[1].grad, **close)
    else:
        assert mine[1].grad is None


def test_no_logits_are_made_for_what_does_not_count() -> None:
    targets = torch.full((1000,), IGNORE_INDEX)
    targets[[3, 500, 999]] = 1
    places = ops.wanted_places(targets, IGNORE_INDEX)
    assert places is not None and {3, 500, 999} <= set(places.tolist()) and len(places) == 4
    assert ops.wanted_places(torch.ones(10, dtype=torch.long), IGNORE_INDEX) is None
    assert len(ops.wanted_places(torch.full((10,), IGNORE_INDEX), IGNORE_INDEX)) == 2  # type: ignore[arg-type]
