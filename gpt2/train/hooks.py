"""What happens beside the steps: longer rows, metrics, evaluation, samples; in this order after each. Then save.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.data.shards import Split
from gpt2.model.gpt import GPT
from gpt2.train.config import TrainConfig
from gpt2.train.live import Live
from gpt2.train.loop import Run, StepResult
from gpt2.train.metrics import MetricsFile
from gpt2.train.validate import BrokenOff, Validation, validate

LAST_EVAL_SHARE = 0.2  # of the trained tokens: the last evaluation reads the whole split unless it is dearer


@dataclass
class Stretch:
    """When rows grow from `short_length` to the context, later positions start as copies of those already learned.

    They have never been trained; with what the first ones know (and the optimizer's averages of it) they need not
    begin from noise.
    """

    config: TrainConfig

    def __call__(self, run: Run, result: StepResult) -> None:
        before, now = result.length, self.config.length_at(run.state.step)
        if now <= before or self.config.init is not None:  # a model that goes on has learned them already
            return
        weights, averages = run.weights.tensors(), run.optimizer.tensors()
        learned = [weights["wpe.weight"], *(t for name, t in averages.items() if name.endswith(".wpe.weight"))]
        for tensor in learned:
            repeat_rows(tensor, before, now)
        run.weights.publish()


def repeat_rows(tensor: Tensor, before: int, now: int) -> None:
    """Rows `before` to `now` become copies of the first ones, in place; `tensor` may be spread over processes."""
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    for start in range(before, now, before):
        whole[start : start + before] = whole[: min(before, now - start)]
    if whole is not tensor:
        from torch.distributed.tensor import distribute_tensor

        tensor.copy_(distribute_tensor(whole, tensor.device_mesh, tensor.placements))  # type: ignore[attr-defined]


@dataclass
class Log:
    """A line of metrics.jsonl every `every` steps."""

    metrics: MetricsFile
    live: Live
    every: int

    def __call__(self, run: Run, result: StepResult) -> None:
        if run.state.step % self.every and run.state.step != run.max_steps:
            return
        self.metrics.write(
            run.state.step,
            tokens=run.state.tokens,
            **{"train/loss": result.loss},
            grad_norm=result.grad_norm,
            **({"skipped": run.state.skipped} if run.state.skipped else {}),
            **({"epochs": passes} if (passes := run.batches.epochs()) else {}),
            learning_rate=result.learning_rate,
            tokens_per_second=round(self.live.tokens_per_second, 1),
            mfu=round(self.live.mfu, 4),
            elapsed=round(run.state.elapsed, 3),
        )


@dataclass
class Evaluate:
    """Validation loss every `every` steps on a part; `finish` reads all of the split where that is cheap."""

    split: Split
    metrics: MetricsFile
    live: Live
    every: int
    tokens: int
    eot_id: int | None = None  # where documents do not see each other, what parts them
    latest: Validation | None = None
    latest_step: int = -1

    def __call__(self, run: Run, result: StepResult) -> None:
        if run.state.step % self.every == 0 and run.state.step != run.max_steps:
            self.measure(run, self.tokens, run.weights.worker, result.length)

    def finish(self, run: Run) -> None:
        """The model that is done, in full digits."""
        most_tokens = max(self.tokens, round(LAST_EVAL_SHARE * run.state.tokens))
        self.measure(run, most_tokens, run.weights.master, run.weights.master.config.context_length)

    def measure(self, run: Run, most_tokens: int, model: GPT, length: int) -> None:
        """Score in windows as long as the rows that the model has seen so far: later positions are untrained.

        Who was asked to end does not wait for it: the checkpoint comes behind it.
        """
        try:
            found = validate(
                *(model, self.split, run.device, most_tokens, self.tokens, length, run.ranks),
                asked=lambda: run.asked,
                eot_id=self.eot_id,
            )
        except BrokenOff:
            self.live.say(f"step {run.state.step:,}  validation broken off, as the run is to end")
            return
        self.latest, self.latest_step = found, run.state.step
        run.state.validated = run.state.step
        self.metrics.write(run.state.step, tokens=run.state.tokens, **found.as_metrics(), val_targets=found.targets)
        per_byte = f"  {found.bits_per_byte:.3f} bits per byte" if found.bits_per_byte else ""
        self.live.say(f"step {run.state.step:,}  validation loss {found.loss:.4f}{per_byte}")


@dataclass
class Sample:
    """A text written by the model every `every` steps; how is the caller's business."""

    write: Callable[[GPT], str]
    metrics: MetricsFile
    live: Live
    every: int

    def __call__(self, run: Run, result: StepResult) -> None:
        if run.state.step % self.every == 0 and run.state.step != run.max_steps and not run.stopping:
            run.weights.eval()
            model = run.weights.whole_model()  # all processes make it, one has it
            if model is not None:
                with torch.compiler.set_stance("force_eager"):  # a cache of keys is another graph for each layer
                    text = self.write(model)
                self.metrics.write(run.state.step, sample=text)
                self.live.say(f"step {run.state.step:,}  sample: {' '.join(text.split())[:160]}")
            run.weights.train()
