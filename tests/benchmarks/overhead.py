"""What Ray Train, MLflow and checkpoints cost a training: its own loop with all of it, beside the same loop without.

    python tests/benchmarks/overhead.py [JOB] [--workers 2] [--seconds 120] [--pairs 5] [--slices 1]

One group of processes trains a benchmark job; in one window of each pair nothing leaves the loop. The windows of a pair are cut
into slices that take turns: with, without, without, with, and so on, so that a machine that gets faster or slower favours
neither; many slices help where its speed changes within a pair. A slice with everything goes on until a checkpoint that is being
written has been written; points of the curves that have not been sent wait for the next one. A point goes to MLflow every second,
as in a training of a quarter of an hour. Half of the time is not the training's own, so a checkpoint comes every four minutes in
place of the default's two; one that falls due in a bare slice is written in the next slice with everything.
"""

import argparse
import contextlib
import dataclasses
import tempfile
import threading
import time
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

from jobs import JOBS, TextJob
from kept import keep
from ours import language_model_config, random_text

from rnnlm.data.shards import write_tokens
from rnnlm.errors import RnnlmError
from rnnlm.experiment import Experiment
from rnnlm.integrations import ray_train
from rnnlm.integrations.mlflow_tracking import Tracking
from rnnlm.integrations.ray_cluster import Placement, connect
from rnnlm.integrations.train_worker import Worker, WorkerJob
from rnnlm.storage import Store
from rnnlm.training.config import TrainConfig
from rnnlm.training.state import StepReport, TrainingRun

WARM_UP = 100
"""Steps before the first window."""
T_975 = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t that 97.5 % lie below, by degrees of freedom."""


class Switched(Worker):
    """The training of `rnnlm.integrations.train_worker`, switched on and off.

    Every slice has the same number of steps, or some more where a checkpoint takes longer, so that all workers switch at the
    same one.
    """

    def __init__(self, job: WorkerJob, seconds: float, slices: int) -> None:
        super().__init__(job)
        self.slices: list[tuple[int, float]] = []
        """Tokens of this worker and seconds of each slice; `is_bare` says of which kind it was."""
        self.num_checkpoints = 0
        self._seconds = seconds
        self._wanted = slices
        self._slice_steps = 0
        self._is_due = False
        self._sends = threading.Event()
        self._begin(0)

    def _train(self, run: TrainingRun) -> RnnlmError | None:
        if self._outside is not None:
            assert self._outside._tracker is not None
            send = self._outside._tracker._send
            self._outside._tracker._send = lambda: self._sends.wait() and send()  # type: ignore[method-assign]
        try:
            return super()._train(run)
        finally:
            self._sends.set()

    def _after_step(self, run: TrainingRun, report: StepReport) -> None:
        self._tokens += report.tokens
        bare = is_bare(len(self.slices))
        self._is_due |= report.checkpoint
        if not bare:
            self.num_checkpoints += self._is_due
            super()._after_step(run, dataclasses.replace(report, checkpoint=self._is_due))
            self._is_due = False
        steps = report.step - self._start
        if report.step == WARM_UP // 2:
            self._begin(report.step)
        elif report.step == WARM_UP:
            (step_s,) = run.collective.sum([(time.perf_counter() - self._began) / steps])
            steps_per_s = run.collective.world_size / step_s
            self._slice_steps = max(1, round(self._seconds * steps_per_s))
            run.state.stride = max(1, round(steps_per_s))
            run.state.logged_step = report.step - report.step % run.state.stride
            self._begin(report.step)
        elif self._slice_steps and steps >= self._slice_steps and not run.collective.any(self._is_writing()):
            self.slices.append((self._tokens, time.perf_counter() - self._began))
            self._begin(report.step)
            if len(self.slices) == self._wanted:
                run.state.stop = "requested"

    def _is_writing(self) -> bool:
        writer = self._checkpoints._writer
        return writer is not None and writer.is_alive()

    def _begin(self, step: int) -> None:
        """A new slice."""
        self._start, self._tokens, self._began = step, 0, time.perf_counter()
        bare = is_bare(len(self.slices))
        (self._sends.clear if bare else self._sends.set)()
        if self._outside is not None:
            write = _nothing if bare else type(self._outside)._write_progress.__get__(self._outside)
            self._outside._write_progress = write  # type: ignore[method-assign]


def is_bare(number: int) -> bool:
    """Whether in this slice, counted from 0, nothing leaves the loop."""
    return number % 4 in (1, 2)


def rates(slices: list[tuple[int, float]], a_pair: int, bare: bool) -> list[float]:
    """Tokens a second of the windows of one kind, one of each pair of windows, which has so many slices."""
    found = []
    for first in range(0, len(slices), a_pair):
        mine = [slices[number] for number in range(first, first + a_pair) if is_bare(number) == bare]
        found.append(sum(tokens for tokens, _ in mine) / sum(seconds for _, seconds in mine))
    return found


def _nothing() -> None:
    """Progress of a bare window."""


def experiment_of(job: TextJob) -> Experiment:
    """The job with everything that a training does by default: AdamW, checkpoints, the guard."""
    model = language_model_config(job).model_dump(mode="json")
    return Experiment.parse(
        {
            "name": "overhead", "task": "text", "data": {"train": "nothing"}, "model": model,
            "train": {"lanes": job.B, "bptt_length": job.T, "max_steps": 10_000_000, "guard": {"max_divergences": 0},
                      "checkpoint_every_s": 2 * TrainConfig().checkpoint_every_s},
            "optim": {"lr": 1e-4},
        }
    )  # fmt: skip


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "job", nargs="?", default="b", choices=[name for name in JOBS if isinstance(JOBS[name], TextJob)]
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=120.0, help="of a window")
    parser.add_argument("--pairs", type=int, default=5, help="3 to 10")
    parser.add_argument("--slices", type=int, default=1, help="of a window")
    given = parser.parse_args()
    job = JOBS[given.job]
    assert isinstance(job, TextJob)
    with tempfile.TemporaryDirectory() as folder, connect(num_cpus=2) as session:
        store = Store(folder)
        write_tokens(store, "train", random_text(job))
        tracking = Tracking(f"sqlite:///{folder}/mlflow.db", f"{folder}/artifacts")
        training = ray_train.TrainJob(
            experiment_of(job), job.V, store, store.child("training"), Placement(given.workers, 2 // given.workers),
            tracking_uri=tracking.uri, run_id=tracking.start_run("overhead", "train", "train"),
        )  # fmt: skip
        trainer = ray_train.trainer(training, ray_train.new_attempt(training), session.started_here)
        seconds, pairs, a_pair = given.seconds, given.pairs, 2 * given.slices

        def alternate(values: Mapping[str, Any]) -> tuple[list[tuple[int, float]], int]:
            worker = Switched(WorkerJob(**values), seconds / (a_pair // 2), pairs * a_pair)
            with contextlib.ExitStack() as stack:
                told = worker.work(stack)
            if "error" in told:
                raise RuntimeError(told["error"])
            return worker.slices, worker.num_checkpoints

        trainer.train_loop_per_worker = alternate
        slices, num_checkpoints = trainer.fit().return_value
    full, bare = (rates(slices, a_pair, which) for which in (False, True))
    costs = [1 - with_all / alone for with_all, alone in zip(full, bare, strict=True)]
    spread = T_975[pairs - 1] * stdev(costs) / pairs**0.5
    row = {
        "job": given.job, "workers": given.workers, "window_s": seconds, "slices": given.slices,
        "checkpoints": num_checkpoints, "cost": round(fmean(costs), 4),
        "upper_95": round(fmean(costs) + spread, 4), "pairs": [round(cost, 4) for cost in costs],
        "tokens_per_second": round(fmean(full)), "tokens_per_second_bare": round(fmean(bare)),
    }  # fmt: skip
    print(
        f"job {given.job}, {given.workers} workers: {row['tokens_per_second']:,} tokens/s, bare {row['tokens_per_second_bare']:,}; "
        f"costs {100 * row['cost']:.2f} % "
        f"(upper end of the 95 % interval {100 * row['upper_95']:.2f} %), {num_checkpoints} checkpoints"
    )
    keep(f"overhead, {given.workers} workers", row)


if __name__ == "__main__":
    main()
