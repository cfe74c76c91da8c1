"""What a person sees of a run: one line that moves in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING

from gpt2.model.sizes import training_flops_per_token
from gpt2.runtime import say
from gpt2.train.loop import Run, StepResult

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_EVERY = 10.0  # seconds between lines where nothing can move


class Live:
    """A hook: step, loss, tokens per second, share of the device's peak, time left."""

    def __init__(self, run: Run, peak_flops: float, quiet: bool = False) -> None:
        self.run, self.peak = run, peak_flops
        self.recent: deque[tuple[int, float, float]] = deque(maxlen=20)  # (tokens, seconds, FLOPs) of the last steps
        self.quiet, self.last_line = quiet, 0.0
        self.loss: float | None = None  # smoothed; of this session
        self.progress: Progress | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> Live:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.progress = Progress(
                TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(compact=True, elapsed_when_finished=True),
                console=Console(stderr=True),
            )
            self.progress.start()
            self.task = self.progress.add_task("", total=self.run.max_steps, completed=self.run.state.step, text="")
        return self

    def __exit__(self, *exception: object) -> None:
        if self.progress:
            self.progress.stop()

    def __call__(self, run: Run, result: StepResult) -> None:
        flops = result.tokens * training_flops_per_token(run.weights.master.config, result.length)
        self.recent.append((result.tokens, result.seconds, flops))
        self.loss = result.loss if self.loss is None else 0.9 * self.loss + 0.1 * result.loss
        if self.progress and self.task is not None:
            self.progress.update(self.task, completed=run.state.step, text=self.text())
        elif not self.quiet and (time.monotonic() - self.last_line > PLAIN_EVERY or run.state.step == run.max_steps):
            self.last_line = time.monotonic()
            say(f"step {run.state.step:,}/{run.max_steps:,}  {self.text()}  {clock(self.seconds_left())} left")

    @property
    def tokens_per_second(self) -> float:
        """Over the last steps, evaluation and saving left out."""
        tokens, seconds, _ = self.sums()
        return tokens / seconds if seconds else 0.0

    @property
    def mfu(self) -> float:
        """Model FLOPs per second over the device's peak."""
        _, seconds, flops = self.sums()
        return flops / seconds / self.peak if seconds and self.peak else 0.0

    def sums(self) -> tuple[float, ...]:
        """Tokens, seconds and FLOPs of the last steps."""
        return tuple(map(sum, zip(*self.recent, strict=True))) if self.recent else (0.0, 0.0, 0.0)

    def seconds_left(self) -> float:
        per_step = self.sums()[1] / max(1, len(self.recent))
        return per_step * (self.run.max_steps - self.run.state.step)

    def text(self) -> str:
        return f"loss {self.loss or 0.0:.3f}  {self.tokens_per_second:,.0f} tokens/s  {self.mfu:.0%} of peak"

    def say(self, message: str) -> None:
        """A line above the moving one."""
        if self.quiet:
            return
        if self.progress:
            self.progress.console.print(message, markup=False, highlight=False)
        else:
            say(message)


def clock(seconds: float) -> str:
    """`1:05` or `2:03:04`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
