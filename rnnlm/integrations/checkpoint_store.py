"""The checkpoints of one training in its folder of the store: which there are, which is whole, which may go.

A checkpoint is `checkpoints/step-NNNNNNNNN/`, and exists once its `checkpoint.json` does, which is written last. Ray is not
told of them: it would keep its own list, which lags behind by a report, and cannot keep both the newest and the best.
"""

import tempfile
from pathlib import Path

from rnnlm.storage import Store
from rnnlm.training.checkpoint import newest_valid, save_checkpoint
from rnnlm.training.collective import Collective
from rnnlm.training.state import TrainingRun

COMMIT_FILE = "checkpoint.json"
_FOLDER = "checkpoints"


def checkpoint_name(step: int) -> str:
    """Where the checkpoint of a step lies, relative to the training's folder."""
    return f"{_FOLDER}/step-{step:09d}"


class CheckpointStore:
    """Checkpoints of one training.

    Args:
        folder: the training's folder.
        keep: newest checkpoints to keep, besides the best.
    """

    def __init__(self, folder: Store, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def steps(self) -> list[int]:
        """The steps of all checkpoints that were written to the end, in order."""
        ends = [name.split("/") for name in self._folder.files(_FOLDER)]
        return sorted(int(parts[1].removeprefix("step-")) for parts in ends if parts[2:] == [COMMIT_FILE])

    def fetch(self, step: int) -> Path:
        """A local folder with the checkpoint of a step."""
        # After a divergence steps are trained anew, and give other weights.
        return self._folder.fetch(checkpoint_name(step), anew=True)

    def newest(self, collective: Collective) -> int:
        """The newest step whose files are what was written; 0 where there is none. Collective; worker 0 decides."""
        step = 0
        if collective.rank == 0:
            for candidate in reversed(self.steps()):
                if newest_valid([self.fetch(candidate)]) is not None:
                    step = candidate
                    break
        return int(collective.sum([float(step)])[0])

    def save(self, run: TrainingRun, step: int, collective: Collective) -> None:
        """Write the checkpoint of this step. Collective; worker 0 writes."""
        name = checkpoint_name(step)
        local = self._folder.local(name)
        if local is not None:
            save_checkpoint(local, run)
            return
        with tempfile.TemporaryDirectory(prefix="rnnlm-checkpoint-") as temporary:
            save_checkpoint(Path(temporary), run)
            if collective.rank == 0:
                for file in sorted(Path(temporary).iterdir(), key=lambda path: (path.name == COMMIT_FILE, path.name)):
                    self._folder.upload(file, f"{name}/{file.name}")

    def prune(self, best_step: int) -> None:
        """Delete all but the newest and the best, each one's commit file first."""
        steps = self.steps()
        for step in set(steps[: -self._keep]) - {best_step}:
            self._folder.delete(f"{checkpoint_name(step)}/{COMMIT_FILE}")
            self._folder.delete(checkpoint_name(step))

    def best_or_last(self, best_step: int) -> str | None:
        """Name of the best checkpoint, of the last where no validation was made, None where there is none."""
        steps = self.steps()
        if not steps:
            return None
        return checkpoint_name(best_step if best_step in steps else steps[-1])
