"""The checkpoints of one training in its folder of the store: which there are, which is whole, which may go.

A checkpoint is `checkpoints/step-NNNNNNNNN/`, and exists once its `checkpoint.json` does, which is written last. Ray is not
told of them: it would keep its own list, which lags behind by a report, and cannot keep both the newest and the best.
"""

import contextlib
import logging
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from rnnlm.errors import RnnlmError, UnreachableError
from rnnlm.storage import Store
from rnnlm.training.checkpoint import Snapshot, newest_valid, take_snapshot
from rnnlm.training.collective import Collective
from rnnlm.training.state import TrainingRun

_log = logging.getLogger(__name__)

COMMIT_FILE = "checkpoint.json"
_FOLDER = "checkpoints"


class UnwrittenCheckpoint(RnnlmError):
    """The disk does not take a checkpoint.

    Not an `UnreachableError`, after which a training's workers are started again: a disk that is full stays so.
    """


def checkpoint_name(step: int) -> str:
    """Where the checkpoint of a step lies, relative to the training's folder."""
    return f"{_FOLDER}/step-{step:09d}"


class CheckpointStore:
    """Checkpoints of one training. They are written in the background: training goes on as soon as a copy is made.

    Args:
        folder: the training's folder.
        keep: newest checkpoints to keep, besides the best.
        check: called before each is written; raises where this process must not write any more.
    """

    def __init__(self, folder: Store, keep: int, check: Callable[[], None] = lambda: None) -> None:
        self._folder = folder
        self._keep = keep
        self._check = check
        self._writer: threading.Thread | None = None
        self._problem: RnnlmError | None = None
        self.passed_over: list[int] = []
        """Steps of checkpoints that were found damaged."""

    def steps(self) -> list[int]:
        """The steps of all checkpoints that were written to the end, in order."""
        ends = [name.split("/") for name in self._folder.files(_FOLDER)]
        return sorted(int(parts[1].removeprefix("step-")) for parts in ends if parts[2:] == [COMMIT_FILE])

    def fetch(self, step: int) -> Path:
        """A local folder with the checkpoint of a step."""
        # After a divergence steps are trained anew, and give other weights.
        return self._folder.fetch(checkpoint_name(step), anew=True)

    def newest(self, collective: Collective) -> int:
        """The newest step whose files are what was written; 0 where there is none. Collective; worker 0 decides.

        A damaged checkpoint is passed over with a warning.
        """
        self.wait(collective)
        step = 0
        if collective.rank == 0:
            for candidate in reversed(self.steps()):
                if newest_valid([self.fetch(candidate)]) is not None:
                    step = candidate
                    break
                _log.warning("%s: is damaged; the checkpoint before it is used", checkpoint_name(candidate))
                self.passed_over.append(candidate)
        return int(collective.sum([float(step)])[0])

    def save(self, run: TrainingRun, collective: Collective) -> None:
        """Begin to write the checkpoint of the last step, then delete those that are no longer kept. Collective.

        Only one is written at a time: the call waits for the one before.

        Raises:
            Divergence: a value is not finite. On all workers alike, as the next.
            RnnlmError: the one before could not be written.
        """
        self.wait(collective)
        snapshot = take_snapshot(run)
        if snapshot is not None:
            self._writer = threading.Thread(
                target=self._write, args=(snapshot, run.state.best_step or 0), name="checkpoint"
            )
            self._writer.start()

    def wait(self, collective: Collective) -> None:
        """Until what was begun is written. Collective.

        Raises:
            RnnlmError: it could not be. On all workers alike.
        """
        if self._writer is not None:
            self._writer.join()
        problem, self._problem = self._problem, None
        if collective.any(problem is not None):
            raise problem or RnnlmError("worker 0 could not write a checkpoint")

    def _write(self, snapshot: Snapshot, best_step: int) -> None:
        name = checkpoint_name(snapshot.step)
        try:
            self._check()
        except RnnlmError as error:
            self._problem = error
            return
        try:
            local = self._folder.local(name)
            if local is not None:
                snapshot.write(local)
            else:
                self._upload(snapshot, name)
            self._prune(snapshot.step, best_step)
        except Exception as error:
            with contextlib.suppress(RnnlmError):
                self._folder.delete(name)  # a full disk needs the room
            if isinstance(error, UnreachableError):
                self._problem = error
            elif isinstance(error, RnnlmError):
                self._problem = UnwrittenCheckpoint(str(error))
            else:
                kind = UnwrittenCheckpoint if isinstance(error, OSError) else RnnlmError
                self._problem = kind(f"{self._folder.path(name)}: the checkpoint cannot be written: {error}")

    def _upload(self, snapshot: Snapshot, name: str) -> None:
        with tempfile.TemporaryDirectory(prefix="rnnlm-checkpoint-") as temporary:
            snapshot.write(Path(temporary))
            for file in sorted(Path(temporary).iterdir(), key=lambda path: (path.name == COMMIT_FILE, path.name)):
                self._folder.upload(file, f"{name}/{file.name}")

    def _prune(self, last: int, best_step: int) -> None:
        """Delete all but the newest and the best, each one's commit file first; any beyond the last step is damaged."""
        steps = self.steps()
        kept = [step for step in steps if step <= last][-self._keep :]
        for step in set(steps) - {*kept, best_step}:
            self._folder.delete(f"{checkpoint_name(step)}/{COMMIT_FILE}")
            self._folder.delete(checkpoint_name(step))

    def best_or_last(self, best_step: int) -> str | None:
        """Name of the best checkpoint, of the last where no validation was made, None where there is none."""
        steps = self.steps()
        if not steps:
            return None
        return checkpoint_name(best_step if best_step in steps else steps[-1])
