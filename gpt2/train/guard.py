"""Steps to beware of: a loss or a gradient norm far above what the run is used to, or one that is no number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gpt2.errors import UserError

NEWEST = 0.02  # share of the newest step in the running mean and variance: they look back over about fifty
FIRST_WATCHED = 50  # steps before any can leap: there is no habit yet
LEAST_DEVIATION = 0.01  # of the mean; below it every step of a very even run would be a leap
MOST_BAD_IN_A_ROW = 20  # steps without a number; then the weights are at fault, not the data


class BadStep(UserError):
    """A step that the run must not take."""


class NonFiniteLoss(BadStep):
    """The loss or the gradient is no number any more."""


class Leap(BadStep):
    """The loss or the gradient norm is far above what is usual, and the run is to stop then."""


@dataclass
class Habits:
    """What steps of this run look like; saved with it, so that a resumed run decides the same."""

    row_length: int = 0  # tokens of the rows that the means are of
    watched: int = 0  # steps in the means
    loss_mean: float = 0.0
    loss_variance: float = 0.0
    norm_mean: float = 0.0
    norm_variance: float = 0.0
    skipped: int = 0  # steps not taken, over the whole run: leaps, no numbers, float16 overflows
    bad_in_a_row: int = 0  # steps just before this one without a number

    def expect(self, row_length: int) -> None:
        """Begin new means where rows grow: their losses and gradients are others."""
        if row_length != self.row_length:
            self.row_length, self.watched = row_length, 0
            self.loss_mean = self.loss_variance = self.norm_mean = self.norm_variance = 0.0


@dataclass(frozen=True)
class Guard:
    """What becomes of a step whose loss or gradient norm is `z` deviations above its mean, or no number.

    keep: leaps are taken, no numbers stop the run; skip: both are passed over; stop: both stop it.
    """

    on_outlier: Literal["keep", "skip", "stop"] = "keep"
    z: float = 6.0

    def look(self, habits: Habits, loss: float, norm: float, step: int) -> str:
        """Empty if the step may be taken, else why it is skipped; every process decides the same from the same sums.

        Raises NonFiniteLoss and Leap where the run is to stop.
        """
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                return self._no_number(habits, f"the {name} is {value}", step)
        habits.bad_in_a_row = 0
        leap = "" if habits.watched < FIRST_WATCHED else self._leap(habits, loss, norm)
        self._learn(habits, loss, norm)
        if not leap or self.on_outlier == "keep":
            return ""
        if self.on_outlier == "stop":
            raise Leap(f"step {step}: {leap} (on_outlier = stop)")
        return leap

    def _no_number(self, habits: Habits, what: str, step: int) -> str:
        habits.bad_in_a_row += 1
        if self.on_outlier != "skip":
            raise NonFiniteLoss(f"step {step}: {what}")
        if habits.bad_in_a_row > MOST_BAD_IN_A_ROW:
            raise NonFiniteLoss(f"step {step}: {what}, as in the {MOST_BAD_IN_A_ROW} steps before, which were skipped")
        return what

    def _leap(self, habits: Habits, loss: float, norm: float) -> str:
        """The first of the two that is too far above its mean, in words."""
        for name, value, mean, deviation in (
            ("loss", loss, habits.loss_mean, spread(habits.loss_mean, habits.loss_variance)),
            ("gradient norm", norm, habits.norm_mean, spread(habits.norm_mean, habits.norm_variance)),
        ):
            if value > mean + self.z * deviation:
                return (
                    f"a {name} of {value:.4g} is {(value - mean) / deviation:.1f} deviations above its mean {mean:.4g}"
                )
        return ""

    def _learn(self, habits: Habits, loss: float, norm: float) -> None:
        """Take the step into the means, a leap only as far as it was allowed to go.

        A single one hardly moves them; if all steps from now on are higher, the deviation grows until they pass.
        """
        newest = max(NEWEST, 1.0 / (habits.watched + 1))  # the first step is all of the mean
        known = habits.watched >= FIRST_WATCHED
        habits.loss_mean, habits.loss_variance = self._moved(
            habits.loss_mean, habits.loss_variance, loss, newest, known
        )
        habits.norm_mean, habits.norm_variance = self._moved(
            habits.norm_mean, habits.norm_variance, norm, newest, known
        )
        habits.watched += 1

    def _moved(self, mean: float, variance: float, value: float, newest: float, known: bool) -> tuple[float, float]:
        if known:
            value = min(value, mean + self.z * spread(mean, variance))
        away = value - mean
        return mean + newest * away, (1.0 - newest) * (variance + newest * away * away)


KEEP = Guard()


def spread(mean: float, variance: float) -> float:
    """The deviation to measure leaps by."""
    return max(math.sqrt(variance), LEAST_DEVIATION * abs(mean))
