"""What happens beside the steps: longer rows, metrics, evaluation, samples, checkpoints; in this order after each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from gpt2.checkpoint.find import follow, point
from gpt2.checkpoint.native import write_folder
from gpt2.checkpoint.train_state import newest_good_step, prune, save_step, steps
from gpt2.data.shards import Split
from gpt2.model.gpt import GPT
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.train.config import TrainConfig
from gpt2.train.live import Live
from gpt2.train.loop import Run, StepResult
from gpt2.train.metrics import MetricsFile
from gpt2.train.validate import Validation, validate

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
        positions = run.weights.master.wpe.weight
        averages = [value for value in run.optimizer.adamw.state[positions].values() if value.shape == positions.shape]
        for tensor in (positions.data, *averages):
            for start in range(before, now, before):
                tensor[start : start + before] = tensor[: min(before, now - start)]
        run.weights.publish()


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
            grad_norm=None if result.skipped else result.grad_norm,  # infinite then, which JSON cannot say
            learning_rate=result.learning_rate,
            tokens_per_second=round(self.live.tokens_per_second, 1),
            mfu=round(self.live.mfu, 4),
            elapsed=round(run.state.elapsed, 3),
        )


@dataclass
class Evaluate:
    """Validation loss every `every` steps on a part, after the last step on all of the split where that is cheap."""

    split: Split
    metrics: MetricsFile
    live: Live
    every: int
    tokens: int
    latest: Validation | None = None
    latest_step: int = -1

    def __call__(self, run: Run, result: StepResult) -> None:
        if run.state.step == run.max_steps:
            most_tokens = max(self.tokens, round(LAST_EVAL_SHARE * run.state.tokens))
            self.measure(run, most_tokens, run.weights.master, run.weights.master.config.context_length)
        elif run.state.step % self.every == 0:
            self.measure(run, self.tokens, run.weights.worker, result.length)

    def measure(self, run: Run, most_tokens: int, model: GPT, length: int) -> Validation:
        """Score in windows as long as the rows that the model has seen so far: later positions are untrained."""
        found = validate(model, self.split, run.device, most_tokens, mark=self.tokens, length=length)
        self.latest, self.latest_step = found, run.state.step
        self.metrics.write(run.state.step, tokens=run.state.tokens, **found.as_metrics(), val_targets=found.targets)
        per_byte = f"  {found.bits_per_byte:.3f} bits per byte" if found.bits_per_byte else ""
        self.live.say(f"step {run.state.step:,}  validation loss {found.loss:.4f}{per_byte}")
        return found


@dataclass
class Sample:
    """A text written by the model every `every` steps; how is the caller's business."""

    write: Callable[[GPT], str]
    metrics: MetricsFile
    live: Live
    every: int

    def __call__(self, run: Run, result: StepResult) -> None:
        if run.state.step % self.every == 0 and run.state.step != run.max_steps:
            run.weights.eval()
            text = self.write(run.weights.worker)
            run.weights.train()
            self.metrics.write(run.state.step, sample=text)
            self.live.say(f"step {run.state.step:,}  sample: {' '.join(text.split())[:160]}")


@dataclass
class Save:
    """A checkpoint every `every` steps, at the end and when the run is stopped; `best` follows validation."""

    folder: Path
    config: TrainConfig
    tokenizer: Tokenizer | None
    evaluate: Evaluate
    notes: dict[str, Any]

    def __call__(self, run: Run, result: StepResult) -> None:
        step = run.state.step
        if step % (self.config.save_every or run.max_steps) == 0 or step == run.max_steps or run.stopping:
            self.save(run)

    def save(self, run: Run) -> Path:
        """Write the step, point `last` (and `best`) at it, delete what is not to be kept."""
        state = run.state
        latest = self.evaluate.latest if self.evaluate.latest_step == state.step else None
        if latest is not None and latest.start_loss < state.best_val_loss:
            state.best_val_loss, state.best_step = latest.start_loss, state.step
        step = save_step(self.folder, state.step, lambda f: self.write_model(f, run), numbers(run), objects(run))
        if state.best_step == state.step:
            point(self.folder / "best", step)
        prune(self.folder, self.config.keep_last, {path for path in [follow(self.folder / "best")] if path})
        return step

    def write_model(self, folder: Path, run: Run) -> None:
        master = run.weights.master
        state = {name: tensor.detach() for name, tensor in master.named_parameters()}
        notes = {"Training step": f"{run.state.step:,} of {run.max_steps:,}", **self.notes}
        if self.evaluate.latest is not None:
            notes["Validation loss"] = f"{self.evaluate.latest.loss:.4f} nats per token"
        write_folder(folder, master.config, state, self.tokenizer, notes)


def last_good(run: Path) -> str:
    """For an error's end: where the last good checkpoint is and how to go on from it."""
    good = newest_good_step(run) if any(steps(run)) else None
    if good is None:
        return "there is no checkpoint before it"
    return f"the last good checkpoint is {good}; go on with: gpt2 train --resume {quote(str(run))}"


def numbers(run: Run) -> dict[str, Any]:
    """The part of a checkpoint that is a few numbers."""
    return {
        "state": asdict(run.state),
        "cursor": run.batches.state(),
        "loss_scale": run.weights.loss_scale,
        "good_steps": run.weights.good_steps,
        "threads": torch.get_num_threads(),
    }


def objects(run: Run) -> dict[str, Any]:
    """The part that is tensors."""
    rng: dict[str, Any] = {"torch": torch.get_rng_state()}
    if run.device.startswith("cuda"):
        rng["cuda"] = torch.cuda.get_rng_state(run.device)
    return {"optimizer": run.optimizer.state_dict(), "rng": rng}
