"""A ladder of sizes on one text in one span of time: which they are, and what each is trained on.

Every size reads the same number of tokens for each of its parameters, so that parameters, tokens and compute grow
together, as they would for somebody with more to spend; with the same tokens for all, the larger ones would only starve
for data. All are measured on the same held-out tokens. The training itself is climb.py's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from gpt2 import atomic
from gpt2.errors import UserError
from gpt2.model.config import GPTConfig
from gpt2.model.sizes import non_embedding_parameters, parameters, training_flops_per_token
from gpt2.train.config import TrainConfig, compose
from gpt2.train.scaling import Point
from gpt2.train.words import short

CONTEXT = 128
EVALUATIONS = 6  # of a run, at even distances
HELD_OUT = 16_384, 131_072  # tokens of every evaluation, the same for all sizes: the fewest and the most
EVALUATED = 0.1  # of the time, where that is enough for the fewest
SAFETY = 0.8  # of the time budget: machines drift
RUN_SECONDS = 5.0  # that a run takes beside its steps: start, last checkpoint, report
FEWEST_STEPS = 30  # of the smallest size: less is no training
ENOUGH_STEPS = 40  # with fewer a shorter ladder is better, where there may be one
SIZES = 5, 4, 3  # to fit a law through, where nobody says how many: as many as the time allows
ENOUGH_EPOCHS = 1.5  # that the largest size reads: with more of them wider sizes are better, where there is time
MANY_EPOCHS = 4.0  # from where repeated text is worth less than new (Muennighoff et al. 2023)
RECIPE: dict[str, Any] = {
    "batch_tokens": 2048,
    "grad_clip": 0.0,
    "log_every": 5,
    "model": {"context_length": CONTEXT, "bias": False, "tie_head": False},
    "optim": {"muon_lr": 0.02, "embedding_lr": 0.02, "head_lr": 0.008, "eps": 1e-10, "weight_decay": 0.0},
    "schedule": {"schedule": "trapezoid", "warmup_fraction": 0.02, "decay_fraction": 0.6},
}


class TooShort(UserError):
    """The time is not enough for a ladder."""


@dataclass(frozen=True)
class Rung:
    """One size, what it is trained on, and how long that was thought to take."""

    name: str
    n_layer: int
    n_head: int
    n_embd: int
    parameters: int
    non_embedding: int
    flops_per_token: float
    tokens: int
    seconds: float

    @property
    def shape(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("n_layer", "n_head", "n_embd")}

    def point(self, tokens: int, loss: float) -> Point:
        """This size after so many tokens."""
        flops = self.flops_per_token * tokens
        return Point(self.name, self.parameters, self.non_embedding, tokens, flops, loss)


@dataclass(frozen=True)
class Plan:
    """The whole ladder, the held-out size last; resolved before anything is trained."""

    data: str
    seed: int
    device: str
    dtype: str
    held_out_tokens: int = HELD_OUT[0]  # of every evaluation
    rungs: tuple[Rung, ...] = ()

    def settings(self, rung: Rung, out: Path) -> TrainConfig:
        """The run of one size."""
        model = RECIPE["model"] | rung.shape
        named = {name: getattr(self, name) for name in ("data", "seed", "device", "dtype")}
        config = compose(out=str(out / rung.name), max_tokens=rung.tokens, **named, **RECIPE | {"model": model})
        steps = config.ramp.steps_for(rung.tokens)
        every = -(-steps // EVALUATIONS)
        return replace(config, eval_tokens=self.held_out_tokens, eval_every=every, sample_every=steps)

    def write(self, path: Path) -> None:
        atomic.write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Plan:
        known = read_object(path)
        return cls(**known | {"rungs": tuple(Rung(**rung) for rung in known["rungs"])})


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object that this room wrote; UserError for a file that is none."""
    try:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); remove it, and it is made anew") from None
    return known


def shapes(sizes: int, base: int, vocab_size: int) -> list[GPTConfig]:
    """`sizes` models of 1, 2, 3 ... times the base width, and the smallest with at least twice the last's parameters.

    Twice in all and twice outside the embeddings. Depth grows with width; heads are as wide as the base. The one that
    is held out may be a layer less deep than it is heads wide: the nearer it is to twice, the less a law is stretched.
    """
    found = [shape(multiple, base, vocab_size) for multiple in range(1, sizes + 1)]
    larger = (shape(m, base, vocab_size, depth) for m in count(sizes + 1) for depth in (m - 1, m))
    return [*found, next(model for model in larger if is_twice(model, found[-1]))]


def is_twice(large: GPTConfig, small: GPTConfig) -> bool:
    """At least twice the parameters, however they are counted."""
    return all(number(large) >= 2 * number(small) for number in (parameters, non_embedding_parameters))


def shape(multiple: int, base: int, vocab_size: int, depth: int | None = None) -> GPTConfig:
    fixed = RECIPE["model"] | {"vocab_size": vocab_size}
    return GPTConfig(n_layer=max(2, depth or multiple), n_head=multiple, n_embd=multiple * base, **fixed)


def held_out_tokens(speeds: Sequence[float], seconds: float, text: int) -> int:
    """What an evaluation reads of a held-out text so long: what so many seconds a token and this time allow."""
    fewest, most = HELD_OUT
    affordable = round(EVALUATED * seconds / (EVALUATIONS / 3 * sum(speeds)))
    return min(text, max(fewest, min(most, affordable)))


def divide(
    models: Sequence[GPTConfig],
    speeds: Sequence[float],
    seconds: float,
    held_out: int,
    fewest_steps: int = FEWEST_STEPS,
) -> list[Rung]:
    """Tokens for each size, the same number a parameter, so that all of it takes so many seconds.

    `speeds` are seconds a token of training, one for each size; evaluations of `held_out` tokens cost a third.
    TooShort if too little time is left for it.
    """
    beside = [RUN_SECONDS + EVALUATIONS * held_out / 3 * each for each in speeds]
    one = sum(parameters(model) * each for model, each in zip(models, speeds, strict=True))  # a token a parameter
    ratio = (seconds * SAFETY - sum(beside)) / one
    fewest = fewest_steps * RECIPE["batch_tokens"] / parameters(models[0])
    if ratio < fewest:
        needed = (fewest * one + sum(beside)) / SAFETY - seconds
        raise TooShort(
            f"too little time: the smallest size would see fewer than {fewest_steps} steps; give {needed / 60:.1f} "
            "--minutes more, or fewer --sizes"
        )
    tokens = [round(ratio * parameters(model)) for model in models]
    return [
        make_rung(number, model, count, count * each + rest)
        for number, (model, count, each, rest) in enumerate(zip(models, tokens, speeds, beside, strict=True), 1)
    ]


def make_rung(number: int, model: GPTConfig, tokens: int, seconds: float = 0.0) -> Rung:
    counts = parameters(model), non_embedding_parameters(model)
    name, flops = f"{number}-{short(counts[0])}", training_flops_per_token(model)
    return Rung(name, model.n_layer, model.n_head, model.n_embd, *counts, flops, tokens, round(seconds, 1))
