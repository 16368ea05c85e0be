"""How many steps a training takes, when it has so much wall time and no more."""

import math
from dataclasses import dataclass
from typing import Self

WARM_STEPS = 2
"""First steps of a process, which set up kernels and memory and say nothing about speed."""
FIRST_FIT_SHARE = 0.02
"""Share of the wall time after which the speed is first believed."""
LATEST_FIRST_FIT_SHARE = 0.2
"""Share of the wall time after which it is, even if it rests on warm-up steps only."""
REFIT_SHARE = 0.75
"""The plan is fitted again whenever the time left has shrunk by this factor, so that its error shrinks with it."""
REFIT_GROWTH = 2
"""And whenever the time gone has grown by this one: first steps can be slow for long, as where graphs are being recorded."""
VALIDATION_SHARE = 0.2
"""Largest share of the wall time for validation, where the number of validations is ours to choose."""


@dataclass(frozen=True)
class Plan:
    """How far the training will go, and how far along the schedule each step is.

    A new plan goes on from the progress that was reached under the old one, so that the learning rate has no jump, and
    ends at progress 1.
    """

    total_steps: int
    anchor_step: int = 0
    anchor_progress: float = 0.0

    def progress(self, step: int) -> float:
        """From 0 to 1; linear from the anchor to the end."""
        if self.anchor_step == 0:
            return min(step / self.total_steps, 1.0)
        if step >= self.total_steps:
            return 1.0
        share = (step - self.anchor_step) / (self.total_steps - self.anchor_step)
        return self.anchor_progress + (1 - self.anchor_progress) * share

    def refit(self, step: int, total_steps: int) -> Self:
        """The same progress up to `step`, another end."""
        return type(self)(max(total_steps, step), step, self.progress(step))


@dataclass(frozen=True)
class Fit:
    """What the time allows."""

    total_steps: int
    validate_every: int
    """The fewest steps between validations that leave most of the time to training."""


class Budget:
    """Fits the number of steps to a wall time, from the speed that is seen.

    Args:
        seconds: the wall time, validation included.
        validation_cost: how long a validation takes, in training steps, until one has been timed.
    """

    def __init__(self, seconds: float, validation_cost: float) -> None:
        self.seconds = seconds
        self._validation_cost = validation_cost
        self._start: tuple[int, float] | None = None
        self._steps_seen = 0
        self._validation_s: float | None = None
        self._validation_total_s = 0.0

    def saw_validation(self, seconds: float) -> None:
        """Take note of what a validation took."""
        self._validation_s = seconds
        self._validation_total_s += seconds

    def is_spent(self, elapsed_s: float) -> bool:
        """Whether only the closing validation still fits."""
        return elapsed_s + (self._validation_s or 0.0) >= self.seconds

    def fit(self, step: int, elapsed_s: float, fitted_at_s: float | None, validate_every: int | None) -> Fit | None:
        """A new plan, when one is due.

        Args:
            step: steps done.
            elapsed_s: wall time since the first one began, in all processes that worked on this training.
            fitted_at_s: `elapsed_s` of the last fit.
            validate_every: steps between validations if they are not ours to choose.
        """
        self._steps_seen += 1
        if self._start is None or self._steps_seen == WARM_STEPS:
            # The first step has no beginning that is known here, which makes this one step short.
            self._start = (step, elapsed_s)
            self._validation_total_s = 0.0
        if not self._is_due(elapsed_s, fitted_at_s):
            return None
        step_s = self._seconds_per_step(step, elapsed_s)
        self._start, self._validation_total_s = (step, elapsed_s), 0.0
        return self._fit(step, self.seconds - elapsed_s, step_s, validate_every)

    def _is_due(self, elapsed_s: float, fitted_at_s: float | None) -> bool:
        if fitted_at_s is None:
            share = FIRST_FIT_SHARE if self._steps_seen > WARM_STEPS + 2 else LATEST_FIRST_FIT_SHARE
            return elapsed_s >= share * self.seconds
        left_s, left_then_s = self.seconds - elapsed_s, self.seconds - fitted_at_s
        is_due = left_s <= REFIT_SHARE * left_then_s or elapsed_s >= REFIT_GROWTH * fitted_at_s
        return is_due and self._steps_seen > WARM_STEPS

    def _seconds_per_step(self, step: int, elapsed_s: float) -> float:
        assert self._start is not None
        start_step, start_s = self._start
        if step == start_step:
            return elapsed_s / max(step, 1)
        return max(elapsed_s - start_s - self._validation_total_s, 1e-6) / (step - start_step)

    def _fit(self, step: int, left_s: float, step_s: float, validate_every: int | None) -> Fit:
        validation_s = self._validation_cost * step_s if self._validation_s is None else self._validation_s
        fewest = max(1, math.ceil(validation_s / (VALIDATION_SHARE * step_s)))
        every = validate_every or fewest
        # The closing validation apart, each step carries its part of those on the way.
        steps = max(left_s - validation_s, 0.0) / (step_s + validation_s / every)
        return Fit(step + math.floor(steps), fewest)
