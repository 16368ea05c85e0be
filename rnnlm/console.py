"""What people see: our own lines and live progress. Everything else goes to a log file.

File descriptors 1 and 2 are pointed at the log while a console is open, so that lines of Ray, MLflow and their child
processes land there too; our own lines go to the original standard output.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rnnlm.errors import without_secrets

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

PLAIN_INTERVAL_S = 30.0
"""Seconds between progress lines where the output is no terminal."""


class Progress:
    """Progress of one piece of work; `update` may be called as often as one likes, from any thread.

    Args:
        console: where lines go.
        title: of the work.
        total: units in all; None: not known yet.
        bars: where it is shown as a bar; None: as a line now and then.
    """

    def __init__(self, console: "Console", title: str, total: float | None, bars: "RichProgress | None") -> None:
        self._console = console
        self._title = title
        self._total = total
        self._started = self._said = time.monotonic()
        self._bars = bars
        self._task: TaskID | None = None if bars is None else bars.add_task(title, total=total, note="")

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        """Say how far the work is.

        Args:
            done: units done so far.
            total: units in all, where it became known or changed.
            note: a few words on the state, such as the loss.
        """
        self._total = total if total is not None else self._total
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, total=self._total, note=note)
        elif time.monotonic() - self._said >= PLAIN_INTERVAL_S:
            self._said = time.monotonic()
            share = f" {done / self._total:.0%}" if self._total else f" {done:g}"
            self._console.say(f"{self._title}:{share} after {self._said - self._started:.0f} s {note}".rstrip())

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bars is not None and self._task is not None:
            self._bars.remove_task(self._task)


class Console:
    """Our own lines, and a log for all others.

    Args:
        log: file for everything that is not ours; None leaves the descriptors alone.
    """

    def __init__(self, log: Path | None = None) -> None:
        self.log = log
        self.out: IO[str] = sys.stdout
        self._saved: tuple[int, int] | None = None
        self._log_stream: IO[str] | None = None
        self._lock = threading.RLock()
        self._bars: RichProgress | None = None
        self._num_bars = 0

    def __enter__(self) -> "Console":
        if self.log is None:
            return self
        sys.stdout.flush()
        sys.stderr.flush()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._log_stream = self.log.open("a", encoding="utf-8", buffering=1)
        self._saved = (os.dup(1), os.dup(2))
        self.out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        os.dup2(self._log_stream.fileno(), 1)
        os.dup2(self._log_stream.fileno(), 2)
        return self

    def __exit__(self, *_: object) -> None:
        if self._saved is None:
            return
        for stream in (sys.stdout, sys.stderr, self.out):
            with contextlib.suppress(OSError):
                stream.flush()
        for target, saved in zip((1, 2), self._saved, strict=True):
            os.dup2(saved, target)
            os.close(saved)
        self.out.close()
        self.out = sys.stdout
        self._saved = None
        if self._log_stream is not None:
            with contextlib.suppress(OSError):
                self._log_stream.close()

    @property
    def is_terminal(self) -> bool:
        """Whether a person is looking."""
        return self.out.isatty()

    def say(self, text: str = "") -> None:
        """One line of ours, or several that stay together, also kept in the log; from any thread. Without credentials."""
        text = without_secrets(text)
        with self._lock:
            with contextlib.suppress(BrokenPipeError):
                if self._bars is not None:
                    self._bars.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
                else:
                    print(text, file=self.out, flush=True)
            if self._log_stream is not None:
                self.keep(text)

    def keep(self, text: str) -> None:
        """Something for the log alone. That the log cannot be written, on a full disk for instance, stops no work."""
        with contextlib.suppress(OSError):
            print(without_secrets(text), file=self._log_stream or sys.stderr, flush=True)

    @contextlib.contextmanager
    def progress(self, title: str, total: float | None = None) -> Iterator[Progress]:
        """Live progress while the block runs; works at the same time have a bar each."""
        bars = self._open_bars() if self.is_terminal else None
        progress = Progress(self, title, total, bars)
        try:
            yield progress
        finally:
            progress.close()
            if bars is not None:
                self._close_bars(bars)

    def _open_bars(self) -> "RichProgress":
        with self._lock:
            if self._bars is None:
                self._bars = _bars(self.out)
                self._bars.start()
            self._num_bars += 1
            return self._bars

    def _close_bars(self, bars: "RichProgress") -> None:
        with self._lock:
            self._num_bars -= 1
            if not self._num_bars:
                bars.stop()
                self._bars = None

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table in plain text: numbers to the right, words to the left."""
        cells = [[_cell(value) for value in row] for row in rows]
        widths = [max(len(row[column]) for row in [list(header), *cells]) for column in range(len(header))]
        right = [all(isinstance(row[column], int | float) for row in rows) for column in range(len(header))]
        lines = []
        for row in [list(header), ["-" * width for width in widths], *cells]:
            padded = (f"{c:>{w}}" if r else f"{c:<{w}}" for c, w, r in zip(row, widths, right, strict=True))
            lines.append("  " + "  ".join(padded).rstrip())
        self.say("\n".join(lines))

    def last_log_lines(self, count: int = 8) -> list[str]:
        """The last lines of the log that look like an error, else simply the last."""
        if self.log is None or not self.log.exists():
            return []
        lines = self.log.read_text("utf-8", errors="replace").splitlines()[-400:]
        relevant = [line for line in lines if any(word in line for word in ("Error", "error:", "ERROR", "Exception"))]
        return (relevant or lines)[-count:]


def _bars(out: IO[str]) -> "RichProgress":
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return RichProgress(*columns, console=RichConsole(file=out), transient=True, refresh_per_second=4)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 1_000 else f"{value:,.0f}"
    return "" if value is None else str(value)
