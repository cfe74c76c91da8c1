"""Several adapters over one module in one pass: each token gets what its own adapter adds to a matrix's output.

N tokens of the pass  C width of a matrix's input  F width of its output  r rank
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2.inference.request import Span
from gpt2.model.gpt import GPT

if TYPE_CHECKING:
    from gpt2.checkpoint.adapters import Adapter

Low = tuple[Tensor, Tensor, float]  # A (r, C), B (F, r), scale


class Beside:
    """The adapters, in the module's dtype on its device. The module is changed while a pass reads, and not longer."""

    def __init__(self, module: GPT, adapters: Sequence[Adapter]) -> None:
        self.module = module
        self.device = module.wte.weight.device
        self.parts: dict[str, dict[int, Low]] = {}  # by matrix, then by the adapter's number
        for number, adapter in enumerate(adapters, 1):
            adapter.check(module.config)
            for target in adapter.targets:
                low = tuple(self._tensor(adapter, f"{target}.lora_{side}") for side in "AB")
                self.parts.setdefault(target, {})[number] = (low[0], low[1], adapter.config.scale)

    @contextmanager
    def reading(self, order: Sequence[Span]) -> Iterator[None]:
        """Within this, a pass over the spans' tokens in this order is theirs and their adapters'."""
        numbers = torch.tensor([span.adapter for span in order for _ in span.tokens])
        places = {number: (numbers == number).nonzero()[:, 0].to(self.device) for number in set(numbers.tolist())}
        hooks = []
        for target, parts in self.parts.items():
            mine = [(places[number], low) for number, low in parts.items() if number in places]
            if mine:
                hooks.append(self.module.get_submodule(target).register_forward_hook(adding(mine)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _tensor(self, adapter: Adapter, name: str) -> Tensor:
        return torch.from_numpy(adapter.state[name]).to(self.device, self.module.wte.weight.dtype)


def adding(parts: Sequence[tuple[Tensor, Low]]) -> Callable[[Any, tuple[Tensor], Tensor], Tensor]:
    """A hook that adds each part's product to the rows (its tokens) of a matrix's output (1, N, F)."""

    def hook(layer: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        for rows, (a, b, scale) in parts:
            low = F.linear(F.linear(inputs[0][0, rows], a), b)
            output[0].index_add_(0, rows, low, alpha=scale)
        return output

    return hook
