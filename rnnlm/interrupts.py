"""Ctrl-C and SIGTERM: the first asks the work to save and stop, the second ends at once."""

import contextlib
import os
import signal
import threading
import types
from collections.abc import Callable, Iterator

GRACE_S = 28.0
"""Seconds that a clean stop may take before the process ends anyway."""


class Interrupted(BaseException):
    """A signal asked us to stop. Not an `Exception`, so that nothing swallows it on the way."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signal_number


class Interrupts:
    """Owns the handlers of SIGINT and SIGTERM while it is entered.

    The first signal raises `Interrupted` in the main thread; inside `deferred()` it only sets `requested`, and the work
    there polls that and stops where it can save. The second signal, or `GRACE_S` seconds, ends the process.

    Args:
        last_words: called before the process is ended the hard way; stops what must not be left behind.
    """

    def __init__(self, last_words: Callable[[], None] = lambda: None) -> None:
        self.requested: int | None = None
        self.last_words = last_words
        self._deferred = 0
        self._timer: threading.Timer | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._timer is not None:
            self._timer.cancel()

    def stop_requested(self) -> bool:
        """Whether a signal has come."""
        return self.requested is not None

    def check(self) -> None:
        """Go no further once a signal has come: for work that another thread does. Raises `Interrupted`."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[Callable[[], bool]]:
        """Work that polls the yielded function, saves and returns by itself. Raises `Interrupted` when it has returned."""
        self._deferred += 1
        try:
            yield self.stop_requested
        finally:
            self._deferred -= 1
        if not self._deferred:
            self.check()

    def _handle(self, number: int, _frame: types.FrameType | None) -> None:
        if self.requested is not None:
            self._end(number)
        self.requested = number
        self._timer = threading.Timer(GRACE_S, self._end, [number])
        self._timer.daemon = True
        self._timer.start()
        if not self._deferred:
            raise Interrupted(number)

    def _end(self, number: int) -> None:
        with contextlib.suppress(Exception):
            self.last_words()
        os._exit(128 + number)
