"""What of a training is logged, and the interface of those who log it."""

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from rnnlm.training import names
from rnnlm.training.history import History

MAX_POINTS = 1_000
"""Most points that a curve gets."""


class Point(NamedTuple):
    """Values of some metrics at one step."""

    step: int
    metrics: dict[str, float]


class Tracker(Protocol):
    """Where metrics go. It keeps the first value of a metric and step: a resumed training may give it once more."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take the values of some metrics at a step; they may be buffered."""
        ...

    def flush(self) -> None:
        """Bring what is buffered to its place."""
        ...


class MemoryTracker:
    """A tracker that keeps everything in memory, for tests and for training without a tracking server."""

    def __init__(self) -> None:
        self.values: dict[str, dict[int, float]] = {}
        """For each metric its value at each step."""
        self.num_flushes = 0

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """See `Tracker.log`."""
        for name, value in metrics.items():
            self.values.setdefault(name, {}).setdefault(step, value)

    def flush(self) -> None:
        """See `Tracker.flush`."""
        self.num_flushes += 1


class MetricStride:
    """Means over every `stride` steps, each multiple of the stride exactly once.

    The sums come from the history, which is part of a checkpoint; so a training that is resumed inside a stride logs the
    same mean as one that was never interrupted.
    """

    def __init__(self, stride: int) -> None:
        self.stride = stride

    @classmethod
    def for_steps(cls, num_steps: int) -> "MetricStride":
        """The smallest stride with at most `MAX_POINTS` points in so many steps."""
        return cls(max(1, math.ceil(num_steps / MAX_POINTS)))

    def points(self, history: History, logged_step: int) -> list[Point]:
        """The points that have become complete.

        Args:
            history: all steps so far.
            logged_step: the last multiple that was logged; 0 at the start.
        """
        ends = range(logged_step + self.stride, len(history) + 1, self.stride)
        return [Point(end, self._means(history.columns(end - self.stride, end))) for end in ends]

    def _means(self, columns: Mapping[str, list[float]]) -> dict[str, float]:
        tokens, seconds = math.fsum(columns["tokens"]), math.fsum(columns["seconds"])
        nats = math.fsum(loss * count for loss, count in zip(columns["loss_nats"], columns["tokens"], strict=True))
        return {
            names.TRAIN_LOSS: nats / max(tokens, 1),
            names.LEARNING_RATE: math.fsum(columns["learning_rate"]) / self.stride,
            names.GRAD_NORM: math.fsum(columns["grad_norm"]) / self.stride,
            names.TOKENS_PER_SECOND: tokens / max(seconds, 1e-9),
        }
