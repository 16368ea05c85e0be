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

FLUSH_S = 2.0
"""Longest wait of a training for its values to be sent before a checkpoint; those that are not go into a file beside it."""
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

    What was logged goes out in the background every `every_s` seconds, so that a training step does not wait for the
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
        self._taken = len(self._buffer)
        self._sent = 0
        self._is_away = False
        self._looked = threading.Condition(self._buffer_lock)
        self._closing = threading.Event()
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow-tracker", daemon=True)
        self._thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take note of values; returns at once."""
        now = now_ms()
        with self._buffer_lock:
            self._buffer.extend(Point(key, float(value), step, now) for key, value in metrics.items())
            self._taken += len(metrics)

    def flush(self, wait_s: float = FLUSH_S) -> None:
        """Have what there is sent now. Waits for that a moment, but not for a server that was away when last asked."""
        with self._looked:
            goal = self._taken
            if self._is_away or self._sent >= goal:
                return
            self._wanted.set()
            self._looked.wait_for(lambda: self._is_away or self._sent >= goal, wait_s)

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
        self._wanted.set()
        self._thread.join()
        self._send()

    def _work(self) -> None:
        while not self._closing.is_set():
            self._wanted.clear()
            try:
                self._send()
                is_away = False
            except RnnlmError as error:
                is_away = True
                _log.warning("%s; %d values are kept for later", error, len(self._buffer))
            with self._looked:
                self._is_away = is_away
                self._looked.notify_all()
            self._wanted.wait(self._every_s)

    def _send(self) -> None:
        if self._tracking is None:
            self._tracking = self._connect()
        points = self.pending()
        try:
            self._tracking.log_points(self._run_id, self._new(points))
        except RnnlmError:
            # The server may have taken some of them although it gave no answer.
            self._known.clear()
            raise
        for point in points:
            self._known[point.key].add(point.step)
        with self._looked:
            del self._buffer[: len(points)]
            self._sent += len(points)

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
            tracking.log_new_points(run_id, points)
        folder.delete(UNSENT_FILE)
