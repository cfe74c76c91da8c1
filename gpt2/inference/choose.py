"""From logits to the next token without torch: what `sampling.choose` does, row by row, as fast as the memory is read.

    R rows  V vocabulary
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from gpt2.inference.sampling import SamplingParams


@dataclass(frozen=True)
class Ask:
    """Which token follows: the row of logits, the tokens so far (for penalties), how to choose, and what draws."""

    row: int
    prompt: Sequence[int]
    output: Sequence[int]
    params: SamplingParams
    stream: random.Random
