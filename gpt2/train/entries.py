"""The names under which a train state keeps tensors: the same, with the same shapes, on one process and on many.

They are the parameters' names, but for the fused c_attn: tensor parallelism cuts it into q, k and v, so its three
parts are entries of their own always. Whoever reads a state need not know what mesh wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

FUSED = "attn.c_attn"
PARTS = ("q", "k", "v")
KINDS = ("weight", "bias")  # what is cut; products beside the matrix (LoRA) are whole


def entries(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A parameter's entries, as views: itself, or `h.0.attn.c_attn.q.weight` and so on for `h.0.attn.c_attn.weight`."""
    before, found, kind = name.rpartition(f".{FUSED}.")
    if not found or kind not in KINDS:
        yield name, tensor.detach()
        return
    for part, view in zip(PARTS, tensor.detach().chunk(len(PARTS)), strict=True):
        yield f"{before}.{FUSED}.{part}.{kind}", view


def join(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries of whole tensors -> a model's parameters: q, k and v laid one under the other again."""
    joined: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        before, found, rest = name.rpartition(f".{FUSED}.")
        part, _, kind = rest.partition(".")
        if not found or not kind:
            joined[name] = tensor
        elif part == PARTS[0]:
            stem = f"{before}.{FUSED}."
            joined[stem + kind] = torch.cat([tensors[f"{stem}{other}.{kind}"] for other in PARTS])
    return joined
