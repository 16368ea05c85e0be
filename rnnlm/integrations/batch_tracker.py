"""Sends the curves of a training to MLflow: in the background, in batches, each step once.

MLflow itself is imported in the background too, as that takes seconds.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rnnlm.errors import RnnlmError
from rnnlm.storage import Store

if TYPE_CHECKING:
    from rnnlm.integrations.mlflow_tracking import Tracking

_log = logging.getLogger(__name__)

UNSENT_FILE = "unsent.json"
"""In a training's folder: the points that it could not send."""


class Point(NamedTuple):
    """One value of a curve. `time_ms` is since the epoch."""

    key: str
    value: float
    step: int
    time_ms: int


class BatchTracker:
    """Sends the curves of one run, every step of a metric once.

    What was logged goes out in the background every `every_s` seconds, so that a training step never waits for the
    server; a server that is away for a while costs nothing but a warning, as the values are kept. A step that the run
    already has is dropped: after a crash the steps since the last checkpoint are trained, and logged, again.

    Args:
        connect: makes the `Tracking`; called in the background, as importing MLflow takes seconds.
        run_id: the run.
        every_s: seconds between batches.
        unsent: points that an earlier process could not send.
    """

    def __init__(
        self, connect: "Callable[[], Tracking]", run_id: str, every_s: float = 3.0, unsent: Iterable[Point] = ()
    ) -> None:
        self._connect = connect
        self._run_id = run_id
        self._every_s = every_s
        self._tracking: Tracking | None = None
        self._buffer: list[Point] = list(unsent)
        self._known: dict[str, set[int]] = {}
        self._buffer_lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow-tracker", daemon=True)
        self._thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take note of values; returns at once."""
        now = now_ms()
        with self._buffer_lock:
            self._buffer.extend(Point(key, float(value), step, now) for key, value in metrics.items())

    def flush(self) -> None:
        """Send what there is. If the server is away, the values are kept and a warning is written."""
        try:
            self._send()
        except RnnlmError as error:
            _log.warning("%s; %d values are kept for later", error, len(self._buffer))

    def pending(self) -> list[Point]:
        """What has not been sent."""
        with self._buffer_lock:
            return list(self._buffer)

    def close(self) -> None:
        """Send the rest and stop.

        Raises:
            UnreachableError: the server is away.
        """
        self._closing.set()
        self._thread.join()
        self._send()

    def _work(self) -> None:
        while True:
            self.flush()
            if self._closing.wait(self._every_s):
                return

    def _send(self) -> None:
        with self._send_lock:
            if self._tracking is None:
                self._tracking = self._connect()
            points = self.pending()
            self._tracking.log_points(self._run_id, self._new(points))
            for point in points:
                self._known[point.key].add(point.step)
            with self._buffer_lock:
                del self._buffer[: len(points)]

    def _new(self, points: Sequence[Point]) -> list[Point]:
        assert self._tracking is not None
        for key in {point.key for point in points} - self._known.keys():
            self._known[key] = self._tracking.logged_steps(self._run_id, key)
        fresh: dict[tuple[str, int], Point] = {}
        for point in points:
            if point.step not in self._known[point.key]:
                fresh.setdefault((point.key, point.step), point)
        return list(fresh.values())


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return int(time.time() * 1000)


def send_unsent(tracking: "Tracking", folder: Store, run_id: str) -> None:
    """Hand on the points that a training left in its folder, for good."""
    with contextlib.suppress(FileNotFoundError):
        points = [Point(*point) for point in folder.read_json(UNSENT_FILE)]
        if points:
            tracking.log_points(run_id, points)
        folder.delete(UNSENT_FILE)
