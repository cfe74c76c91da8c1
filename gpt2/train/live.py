"""What a person sees of a run: one line that moves in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from gpt2.model.sizes import training_flops_per_token
from gpt2.runtime import say
from gpt2.train.loop import Run, StepResult
from gpt2.train.words import clock

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_EVERY = 10.0  # seconds between lines where nothing can move
RECENT = 20  # steps that a speed is taken over
UNHEARD = contextlib.suppress(OSError, ValueError)  # a console that has gone, or was closed


class Live:
    """A hook: step, loss, tokens per second, share of the peak of all devices, time left; in the main process only.

    `peak_flops` is one device's (FLOP/s); `tokens_before(step)` counts those of all earlier steps, where batches grow.
    `work` is the share of a whole training pass's products that a step makes: less where most weights are frozen.
    A console that has gone (a terminal hung up, a pipe closed) ends the talk and not the run.
    """

    def __init__(
        self,
        run: Run,
        peak_flops: float,
        quiet: bool = False,
        tokens_before: Callable[[int], int] | None = None,
        work: float = 1.0,
    ) -> None:
        self.run, self.peak = run, peak_flops * run.ranks.world_size
        self.tokens_before, self.work = tokens_before, work
        self.recent: deque[tuple[int, float, float]] = deque(
            maxlen=RECENT
        )  # (tokens, seconds, FLOPs) of the last steps
        self.quiet, self.last_line = quiet or not run.ranks.is_main, 0.0
        self.loss: float | None = None  # smoothed; of this session
        self.began, self.training = time.monotonic(), 0.0  # seconds of steps since then
        self.progress: Progress | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> Live:
        if not self.quiet and sys.stderr is not None and sys.stderr.isatty():
            with UNHEARD:
                self.start_bar()
        return self

    def start_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.progress = Progress(
            TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[text]}"),
            console=Console(stderr=True),
        )
        self.progress.start()
        self.task = self.progress.add_task("", total=self.run.max_steps, completed=self.run.state.step, text="")

    def __exit__(self, *exception: object) -> None:
        if self.progress:
            with UNHEARD:
                self.progress.stop()

    def __call__(self, run: Run, result: StepResult) -> None:
        self.count(result)
        if result.note:
            self.say(f"step {run.state.step:,}: {result.note}")
        if self.progress and self.task is not None:
            with UNHEARD:
                self.progress.update(self.task, completed=run.state.step, text=self.text())
        elif not self.quiet and (time.monotonic() - self.last_line > PLAIN_EVERY or run.state.step == run.max_steps):
            self.last_line = time.monotonic()
            self.say(f"step {run.state.step:,}/{run.max_steps:,}  {self.text()}")

    def count(self, result: StepResult) -> None:
        flops = result.tokens * training_flops_per_token(self.run.weights.master.config, result.length) * self.work
        self.recent.append((result.tokens, result.seconds, flops))
        self.training += result.seconds
        if math.isfinite(result.loss):  # a skipped step's may not be
            self.loss = result.loss if self.loss is None else 0.9 * self.loss + 0.1 * result.loss

    @property
    def tokens_per_second(self) -> float:
        """Of all processes together over the last steps, evaluation and saving left out."""
        tokens, seconds, _ = self.sums()
        return tokens / seconds if seconds else 0.0

    @property
    def mfu(self) -> float:
        """Model FLOPs per second over the peak of all devices."""
        _, seconds, flops = self.sums()
        return flops / seconds / self.peak if seconds and self.peak else 0.0

    def sums(self) -> tuple[float, ...]:
        """Tokens, seconds and FLOPs of the last steps."""
        return tuple(map(sum, zip(*self.recent, strict=True))) if self.recent else (0.0, 0.0, 0.0)

    def seconds_left(self) -> float:
        """At the speed of the last steps, with as much beside them (evaluation, saving) as there has been so far."""
        beside = (time.monotonic() - self.began) / self.training if self.training else 1.0
        speed = self.tokens_per_second
        return self.tokens_left() / speed * max(1.0, beside) if speed else 0.0

    def tokens_left(self) -> float:
        step, last = self.run.state.step, self.run.max_steps
        if self.tokens_before is not None:
            return self.tokens_before(last) - self.tokens_before(step)
        return self.sums()[0] / max(1, len(self.recent)) * (last - step)

    def text(self) -> str:
        speed = f"{self.tokens_per_second:,.0f} tokens/s  {self.mfu:.0%} of peak"
        return f"loss {self.loss or 0.0:.3f}  {speed}  {clock(self.seconds_left())} left"

    def say(self, message: str) -> None:
        """A line above the moving one."""
        if self.quiet:
            return
        with UNHEARD:
            if self.progress:
                self.progress.console.print(
                    plain(message, self.progress.console.encoding), markup=False, highlight=False
                )
            else:
                say(plain(message, "utf-8"))


def plain(text: str, encoding: str) -> str:
    """What a console of this encoding can show, without characters that would steer it: a model may write any."""
    visible = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return visible.encode(encoding, "replace").decode(encoding)
