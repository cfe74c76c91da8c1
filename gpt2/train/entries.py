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


class Joined(Mapping[str, Tensor]):
    """Entries of whole tensors as a model's parameters: q, k and v laid one under the other again.

    Each is put together when it is asked for: until then its entries may lie on a disk.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.parts: dict[str, list[str]] = {}
        for name in tensors:
            before, found, rest = name.rpartition(f".{FUSED}.")
            kind = rest.partition(".")[2]
            if not found or not kind:
                self.parts[name] = [name]
            else:
                stem = f"{before}.{FUSED}."
                self.parts[stem + kind] = [f"{stem}{part}.{kind}" for part in PARTS]

    def __getitem__(self, name: str) -> Tensor:
        parts = [self.tensors[part] for part in self.parts[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)
