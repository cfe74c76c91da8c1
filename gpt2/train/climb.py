"""The training of a ladder (ladder.py), one size after another, with the prediction before the last.

OUT/ holds plan.json, a run's folder for each size with point.json in it once it is measured, and prediction.json,
which is written before the held-out size's training begins and never again. Whatever ends it, the same call goes on.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gpt2 import atomic
from gpt2.checkpoint.find import follow
from gpt2.checkpoint.hf_config import read_config
from gpt2.checkpoint.native import load_module
from gpt2.data.shards import open_split, read_meta
from gpt2.distributed.launch import take_place
from gpt2.model.config import GPTConfig
from gpt2.runtime import pick_device, say
from gpt2.train import plan as steps
from gpt2.train.build import build_run, resolve, sizes_of
from gpt2.train.config import TrainConfig
from gpt2.train.ladder import (
    ENOUGH_EPOCHS,
    ENOUGH_STEPS,
    FEWEST_STEPS,
    MANY_EPOCHS,
    Plan,
    Rung,
    TooShort,
    divide,
    held_out_tokens,
    make_rung,
    read_object,
)
from gpt2.train.pretrain import prepare, pretrain, resume
from gpt2.train.scaling import PUBLISHED_LENGTH, Law, Point, fit, floor_of
from gpt2.train.validate import validate
from gpt2.train.words import clock, short

Ladder = Sequence[GPTConfig]
AXES: dict[str, Callable[[Point], float]] = {
    "parameters": lambda point: point.parameters,
    "tokens": lambda point: point.tokens,
    "compute": lambda point: point.flops,
}


class Stopped(Exception):
    """A signal ended the size that was being trained."""

    def __init__(self, by: signal.Signals) -> None:
        super().__init__(by)
        self.by = by


@dataclass(frozen=True)
class Prediction:
    """The held-out size's loss (nats per token) before its training: `loss` is what the law of compute says."""

    written: str
    name: str
    loss: float
    by: dict[str, float]
    same_as_largest: float
    laws: dict[str, Law]
    points: tuple[Point, ...]


def make_plan(draft: Plan, ladders: Sequence[Ladder], seconds: float, out: Path, wider: Sequence[Ladder] = ()) -> Plan:
    """The draft with the first of these ladders that the time is enough for.

    Where its largest size would read the text too often, with the first of the wider ones that does not, or the last
    that the time allows. Each size is measured on this machine for a few seconds, then the time is dealt out.
    UserError if there is too little even for the last of `ladders`.
    """
    end, known = time.monotonic() + seconds, dict[GPTConfig, float]()
    train, val = (len(open_split(draft.data, name)) for name in ("train", "val"))

    def deal(models: Ladder, fewest_steps: int) -> Plan:
        say(f"measuring {len(models)} sizes for {clock(seconds)} of training")
        for model in models:
            if model not in known:
                known[model] = seconds_per_token(draft.settings(make_rung(0, model, 1), out))
        speeds, left = [known[model] for model in models], end - time.monotonic()
        held_out = held_out_tokens(speeds, left, val)
        return replace(
            draft, held_out_tokens=held_out, rungs=tuple(divide(models, speeds, left, held_out, fewest_steps))
        )

    for chosen in ladders:
        try:
            plan = deal(chosen, ENOUGH_STEPS if chosen is not ladders[-1] else FEWEST_STEPS)
            break
        except TooShort:
            if chosen is ladders[-1]:
                raise
    for models in wider if chosen is ladders[0] else ():
        if plan.rungs[-1].tokens <= ENOUGH_EPOCHS * train:
            break
        try:
            plan = deal(models, ENOUGH_STEPS)
        except TooShort:
            with suppress(TooShort):  # dealt out anew: what measuring took is gone
                plan = deal(chosen, FEWEST_STEPS)
            break
        chosen = models
    warn(plan.rungs, train, "" if wider else ", or take a larger --base")
    return plan


def warn(rungs: Sequence[Rung], text: int, else_: str) -> None:
    """Where the sizes will not be what the law is about."""
    passes = rungs[-1].tokens / text
    if passes > MANY_EPOCHS:
        say(
            f"the largest size reads the text {passes:.1f} times; from about {MANY_EPOCHS:.0f} on repeated text is "
            f"worth less than new, and the law breaks: give more text or fewer --minutes{else_}"
        )


def seconds_per_token(config: TrainConfig) -> float:
    """Of a training step, measured on a run that is thrown away."""
    config = replace(config, max_tokens=None, max_steps=1000)
    runtime, config, corpus = prepare(config)
    place = take_place(runtime, sizes_of(config, runtime.world_size))
    config = resolve(config, corpus, place)
    return steps.seconds_per_step(build_run(config, corpus, place), config) / config.batch_tokens


def climb(plan: Plan, out: Path) -> tuple[Prediction, Point]:
    """Train what is not trained yet; the prediction, and what came of it. Stopped if a signal ends it before."""
    last = len(plan.rungs) - 1
    points = tuple(train(plan, number, out) for number in range(last))
    prediction = predict(plan, points, out / "prediction.json")
    return prediction, train(plan, last, out)


def train(plan: Plan, number: int, out: Path) -> Point:
    """One size: trained, gone on with, or already there."""
    rung = plan.rungs[number]
    run = out / rung.name
    if (run / "point.json").exists():
        return Point(**read_object(run / "point.json"))
    say(
        f"size {number + 1} of {len(plan.rungs)}: {short(rung.parameters)} parameters, {short(rung.tokens)} tokens; "
        f"about {clock(sum(each.seconds for each in plan.rungs[number:]))} left for all"
    )
    finished = resume(run) if (run / "config.toml").exists() else pretrain(plan.settings(rung, out))
    if finished.stopped_by is not None:
        raise Stopped(finished.stopped_by)
    point = measure(plan, rung, run, finished.state.tokens)
    atomic.write_text(run / "point.json", json.dumps(asdict(point)) + "\n")
    return point


def measure(plan: Plan, rung: Rung, run: Path, tokens: int) -> Point:
    """The held-out loss of a finished run, on the same tokens for all sizes."""
    folder = follow(run / "last")
    assert folder is not None
    device = pick_device(plan.device)
    model = load_module(folder, read_config(folder)).to(device)
    found = validate(model, open_split(plan.data, "val"), device, plan.held_out_tokens)
    return rung.point(tokens, found.loss)


def predict(plan: Plan, points: tuple[Point, ...], path: Path) -> Prediction:
    """What the fitted sizes say of the one that is held out, on disk before anybody trains it."""
    if path.exists():
        return read_prediction(path)
    rung = plan.rungs[-1]
    unknown = rung.point(rung.tokens, 0.0)
    losses = [point.loss for point in points]
    length = read_meta(plan.data).bytes_per_token
    if length is None:
        say(f"{plan.data} does not say how long a token is; the law's floor is that of {PUBLISHED_LENGTH} bytes")
    floor = floor_of(length)
    laws = {name: fit([of(point) for point in points], losses, floor) for name, of in AXES.items()}
    by = {name: laws[name](of(unknown)) for name, of in AXES.items()}
    written = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    found = Prediction(written, rung.name, by["compute"], by, losses[-1], laws, points)
    atomic.write_text(path, json.dumps(asdict(found), indent=1) + "\n")
    say(f"{path}: {found.loss:.4f} nats per token for {short(rung.parameters)} parameters, before they are trained")
    return found


def read_prediction(path: Path) -> Prediction:
    """As it was written, with the points and laws of then."""
    known = read_object(path)
    laws = {name: Law(**law) for name, law in known["laws"].items()}
    points = tuple(Point(**point) for point in known["points"])
    return Prediction(**known | {"laws": laws, "points": points})
