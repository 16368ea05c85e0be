"""What Ray Train, MLflow and checkpoints cost a training: its own loop with all of it, beside the same loop without.

    python tests/benchmarks/overhead.py [JOB] [--workers 2] [--seconds 120] [--pairs 5]

One group of processes trains a benchmark job; in one window of each pair nothing leaves the loop, in the second of the
first pair, the first of the next, and so on, so that a machine that gets faster or slower favours neither. What runs on into
the next window (a checkpoint that is being written, curves that have not been sent) is waited for in its own. A point of
the curves goes to MLflow every second, as in a training of a quarter of an hour.
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

from jobs import JOBS, TextJob
from kept import keep
from ours import language_model_config, random_text

from rnnlm.data.shards import write_tokens
from rnnlm.experiment import Experiment
from rnnlm.integrations import ray_train
from rnnlm.integrations.mlflow_tracking import Tracking
from rnnlm.integrations.ray_cluster import Placement, connect
from rnnlm.integrations.train_worker import Worker, WorkerJob
from rnnlm.storage import Store
from rnnlm.training.state import StepReport, TrainingRun

WARM_UP = 100
"""Steps before the first window."""
T_975 = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t that 97.5 % lie below, by degrees of freedom."""


class Switched(Worker):
    """The training of `rnnlm.integrations.train_worker`, switched on and off.

    Every window has the same number of steps, so that all workers switch at the same one.
    """

    def __init__(self, job: WorkerJob, seconds: float, pairs: int) -> None:
        super().__init__(job)
        self.rates: list[float] = []
        """Tokens a second of this worker in each window; `is_bare` says of which kind it was."""
        self._seconds = seconds
        self._pairs = pairs
        self._window_steps = 0
        self._begin(0)

    def _after_step(self, run: TrainingRun, report: StepReport) -> None:
        self._tokens += report.tokens
        bare = is_bare(len(self.rates))
        if self._outside is not None:
            write = _nothing if bare else type(self._outside)._write_progress.__get__(self._outside)
            self._outside._write_progress = write  # type: ignore[method-assign]
        if not bare:
            super()._after_step(run, report)
        if report.step == WARM_UP // 2:
            self._begin(report.step)
        elif report.step == WARM_UP:
            (step_s,) = run.collective.sum([(time.perf_counter() - self._began) / (WARM_UP - self._start)])
            steps_per_s = run.collective.world_size / step_s
            self._window_steps = max(1, round(self._seconds * steps_per_s))
            run.state.stride = max(1, round(steps_per_s))
            run.state.logged_step = report.step - report.step % run.state.stride
            self._settle(run)
            self._begin(report.step)
        elif report.step - self._start == self._window_steps:
            self._settle(run)
            self.rates.append(self._tokens / (time.perf_counter() - self._began))
            self._begin(report.step)
            if len(self.rates) == 2 * self._pairs:
                run.state.stop = "requested"

    def _settle(self, run: TrainingRun) -> None:
        self._checkpoints.wait(run.collective)
        if self._outside is not None:
            self._outside.flush()

    def _begin(self, step: int) -> None:
        self._start, self._tokens, self._began = step, 0, time.perf_counter()


def is_bare(window: int) -> bool:
    """Whether in this window, counted from 0, nothing leaves the loop."""
    return window % 4 in (1, 2)


def _nothing() -> None:
    """Progress of a bare window."""


def experiment_of(job: TextJob) -> Experiment:
    """The job with everything that a training does by default: AdamW, checkpoints, the guard."""
    model = language_model_config(job).model_dump(mode="json")
    return Experiment.parse(
        {
            "name": "overhead", "task": "text", "data": {"train": "nothing"}, "model": model,
            "train": {"lanes": job.B, "bptt_length": job.T, "max_steps": 10_000_000, "guard": {"max_divergences": 0}},
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
        seconds, pairs = given.seconds, given.pairs

        def alternate(values: Mapping[str, Any]) -> list[float]:
            worker = Switched(WorkerJob(**values), seconds, pairs)
            with contextlib.ExitStack() as stack:
                told = worker.work(stack)
            return worker.rates if "error" not in told else [told["error"]]

        trainer.train_loop_per_worker = alternate
        rates = trainer.fit().return_value
    full, bare = ([rate for window, rate in enumerate(rates) if is_bare(window) == which] for which in (False, True))
    costs = [1 - with_all / alone for with_all, alone in zip(full, bare, strict=True)]
    spread = T_975[pairs - 1] * stdev(costs) / pairs**0.5
    row = {
        "job": given.job, "workers": given.workers, "window_s": seconds, "cost": round(fmean(costs), 4),
        "upper_95": round(fmean(costs) + spread, 4), "pairs": [round(cost, 4) for cost in costs],
        "tokens_per_second": round(fmean(full)), "tokens_per_second_bare": round(fmean(bare)),
    }  # fmt: skip
    print(
        f"job {given.job}, {given.workers} workers: {row['tokens_per_second']:,} tokens/s, bare {row['tokens_per_second_bare']:,}; "
        f"costs {100 * row['cost']:.2f} % (95 %: below {100 * row['upper_95']:.2f} %)"
    )
    keep(f"overhead, {given.workers} workers", row)


if __name__ == "__main__":
    main()
