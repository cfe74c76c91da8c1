"""What held-out examples say of a run: measured now and then, and when they have had no good word for long, its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from gpt2.train.live import Live
from gpt2.train.loop import Batch, Run, StepResult
from gpt2.train.metrics import MetricsFile

PER = {"text": "token", "completion": "token", "label": "text", "preference": "pair"}  # what a mean is over, by kind


@dataclass(frozen=True)
class Verdict:
    """Means over `count` of what the objective counts, such as tokens; "loss" (nats) is one of them."""

    means: Mapping[str, float]
    count: int
    per: str

    @property
    def loss(self) -> float:
        return self.means["loss"]

    @property
    def start_loss(self) -> float:
        """Every evaluation reads the same examples."""
        return self.loss

    def as_metrics(self) -> dict[str, float]:
        return {f"val/{name}": value for name, value in self.means.items()} | {"val_targets": self.count}

    def words(self) -> str:
        others = "".join(f"  {name} {value:.4g}" for name, value in self.means.items() if name != "loss")
        return f"validation loss {self.loss:.4f}{others} ({self.count:,} {self.per}s)"


@torch.no_grad()
def judge(run: Run, batches: Iterable[Batch], per: str) -> Verdict:
    """Measure the model on these batches, this rank's; all ranks come and get the same means."""
    sums: dict[str, float] = {}
    count = 0
    run.weights.eval()
    for batch in batches:
        part = batch.part(slice(None), run.device)
        count += run.objective.count(part)
        for name, value in run.objective.measure(run.weights.worker, part).items():
            sums[name] = sums.get(name, 0.0) + value
    run.weights.train()
    total, *values = run.ranks.total([count, *sums.values()])
    means = {name: value / max(1.0, total) for name, value in zip(sums, values, strict=True)}
    return Verdict(means, round(total), per)


@dataclass
class Evaluate:
    """A hook: a verdict every `every` steps and after the last one; `batches` makes the held-out ones anew."""

    batches: Callable[[], Iterable[Batch]]
    metrics: MetricsFile
    live: Live
    every: int
    per: str
    latest: Verdict | None = None
    latest_step: int = -1

    def __call__(self, run: Run, result: StepResult) -> None:
        if run.state.step % self.every == 0 or run.state.step == run.max_steps:
            self.measure(run)

    def measure(self, run: Run) -> None:
        found = judge(run, self.batches(), self.per)
        self.latest, self.latest_step = found, run.state.step
        self.metrics.write(run.state.step, tokens=run.state.tokens, **found.as_metrics())
        self.live.say(f"step {run.state.step:,}  {found.words()}")


@dataclass
class Unjudged:
    """In the place of Evaluate where no examples are held out: the last step is the one to take."""

    latest: None = None
    latest_step: int = -1


@dataclass
class Patience:
    """A hook behind Evaluate: ends the run after `most` verdicts without a better one (0: never)."""

    evaluate: Evaluate
    most: int

    def __call__(self, run: Run, result: StepResult) -> None:
        latest = self.evaluate.latest
        judged = self.evaluate.latest_step == run.state.step
        if judged and latest is not None and not latest.loss < run.state.best_val_loss:  # NaN is not better
            self.look(run)

    def look(self, run: Run) -> None:
        """End the run if the best verdict is too long ago; what it needs to know is saved with the run."""
        waited = (run.state.step - run.state.best_step) // self.evaluate.every
        if self.most and waited >= self.most and run.state.step < run.max_steps:
            run.stopping = True  # all processes know the same verdicts: nobody need be asked
            run.ended = (
                f"ended after step {run.state.step:,} of {run.max_steps:,}: {waited} evaluations without a better "
                f"validation loss than {run.state.best_val_loss:.4f}, after step {run.state.best_step:,}"
            )
            self.evaluate.metrics.write(run.state.step, ended=run.ended)
