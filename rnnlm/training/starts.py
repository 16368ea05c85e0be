"""How often a training was started, from where, and what that cost: kept in its folder, over all attempts.

A training whose processes die goes on from its newest checkpoint, so the steps beyond that are taken again. One that comes
no further than the same checkpoint again and again will not do so next time either, and is given up.
"""

import uuid
from dataclasses import asdict, dataclass
from typing import Any

from rnnlm.errors import RnnlmError
from rnnlm.storage import Store, trusting

STARTS_FILE = "starts.json"
PROGRESS_FILE = "progress.json"
"""In the folder of an attempt: how far its processes have come, a moment ago."""
MAX_VAIN_STARTS = 3
"""Starts in a row of one attempt, from the same checkpoint and with as many workers, after which another is in vain."""


@dataclass(frozen=True)
class Start:
    """One start of the processes of a training.

    Attributes:
        attempt: folder of the attempt, below the training's.
        step: of the checkpoint that they went on from.
        workers: how many there were.
        again: steps beyond that checkpoint that had been taken before; at least so many, as the processes before told of
            their progress now and then.
        error: what they ended with, where they could say.
        token: tells this start from all others.
    """

    attempt: str
    step: int
    workers: int
    again: int = 0
    error: str | None = None
    token: str = ""


class Starts:
    """All starts of one training. Used by worker 0 alone.

    Args:
        folder: the training's.

    Raises:
        RnnlmError: the file is there but is damaged.
    """

    def __init__(self, folder: Store) -> None:
        self._folder = folder
        values: list[dict[str, Any]] = folder.read_json(STARTS_FILE) if folder.exists(STARTS_FILE) else []
        with trusting(folder.path(STARTS_FILE)):
            self._starts = [Start(**value) for value in values]
        self._reached = self._progress()
        self._token = ""

    def begin(self, attempt: str, step: int, workers: int) -> None:
        """Write a start down.

        Raises:
            RnnlmError: it would be in vain.
        """
        same = [start for start in self._starts[-MAX_VAIN_STARTS:] if _place(start) == (attempt, step, workers)]
        if len(same) == MAX_VAIN_STARTS:
            said = next((start.error for start in reversed(same) if start.error), "they were killed or crashed")
            raise RnnlmError(
                f"the workers ended {MAX_VAIN_STARTS} times in a row after step {step}, with no new checkpoint: {said}"
            )
        self._token = uuid.uuid4().hex
        self._starts.append(Start(attempt, step, workers, max(0, self._reached - step), token=self._token))
        self._write()

    def check(self) -> None:
        """Make sure that nobody has started after us: processes that nobody watches any more must not write.

        Raises:
            RnnlmError: somebody has.
        """
        if not self._token:
            return
        with trusting(self._folder.path(STARTS_FILE)):
            latest = self._folder.read_json(STARTS_FILE)[-1]["token"]
        if latest != self._token:
            raise RnnlmError(f"{self._folder.uri}: another process has gone on with this training")

    def failed(self, error: str) -> None:
        """Note what the processes that run now end with."""
        if self._starts:
            self._starts[-1] = Start(**{**asdict(self._starts[-1]), "error": error})
            self._write()

    @property
    def restarts(self) -> int:
        """Starts after the first."""
        return max(0, len(self._starts) - 1)

    @property
    def steps_again(self) -> int:
        """Steps that were taken again, over all starts."""
        return sum(start.again for start in self._starts)

    def _progress(self) -> int:
        """How far the processes of the last start had come."""
        if not self._starts:
            return 0
        file = f"{self._starts[-1].attempt}/{PROGRESS_FILE}"
        if not self._folder.exists(file):
            return 0
        with trusting(self._folder.path(file)):
            return int(self._folder.read_json(file)["step"])

    def _write(self) -> None:
        self._folder.write_json(STARTS_FILE, [asdict(start) for start in self._starts])


def _place(start: Start) -> tuple[str, int, int]:
    return start.attempt, start.step, start.workers
