"""The search's ears: what Ray Tune tells of the trials goes into the ledger and the MLflow runs."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ray.tune

from rnnlm.errors import UnreachableError
from rnnlm.integrations.batch_tracker import send_unsent
from rnnlm.integrations.mlflow_tracking import Tracking
from rnnlm.integrations.ray_train import STOP_GRACE_S
from rnnlm.integrations.train_worker import STOP_FILE
from rnnlm.integrations.tune_trial import SearchJob, settings_of
from rnnlm.tuning import space as spaces
from rnnlm.tuning.ledger import Ledger, Trial

_log = logging.getLogger(__name__)


class Watcher(ray.tune.Callback):
    """Hears of the trials in the process of the search, and keeps the ledger and the MLflow runs up to date."""

    def __init__(self, job: SearchJob, ledger: Ledger, tracking: Tracking | None) -> None:
        self._job = job
        self._ledger = ledger
        self._tracking = tracking
        self._running: set[str] = set()
        self.stopper = _StopAll(lambda: bool(self._running))
        self.trouble: str | None = None
        """What keeps all trials from going on: a full disk, a store that does not answer. The search ends, they stay open."""

    @property
    def num_ended(self) -> int:
        """Trials that have ended."""
        return sum(not trial.is_open for trial in self._ledger.trials)

    @property
    def best_metrics(self) -> dict[str, float]:
        """Of the best trial so far."""
        best = self._ledger.best(self._job.metric)
        return best.metrics if best else {}

    @property
    def num_trials(self) -> int:
        """Trials in all."""
        return self._job.experiment.tune.trials

    def ask_to_stop(self) -> None:
        """Trials that run save and end; those that have not begun end at once."""
        self.stopper.ask()
        try:
            self._job.folder.write_json(STOP_FILE, {"time": time.time()})
        except UnreachableError as error:
            _log.warning("%s; trials are not told to stop, and lose what they have not saved", error)

    def clear(self) -> None:
        """Forget an earlier wish to stop."""
        self._job.folder.delete(STOP_FILE)

    def on_trial_start(self, trial: Any, **_info: Any) -> None:
        """Tune's hook."""
        self._running.add(trial.trial_id)
        with self._noting_trouble():
            self._entry(trial)

    def on_trial_result(self, trial: Any, result: dict[str, Any], **_info: Any) -> None:
        """Tune's hook."""
        if {"failure", "trouble"} & result.keys() or (result.get("stop") == "requested" and "step" not in result):
            return
        with self._noting_trouble():
            self._note(self._entry(trial), result)

    def _note(self, entry: Trial, result: dict[str, Any]) -> None:
        """Write down what a trial has reached."""
        metrics = {key: float(value) for key, value in result.items() if "/" in key and _is_number(value)}
        old = entry.metrics.get(self._job.metric, math.inf)
        better = metrics.get(self._job.metric, math.inf) <= old
        reports = [*entry.reports]
        if "progress" in result and self._job.metric in metrics:
            reports.append((int(result["progress"]), metrics[self._job.metric]))
        self._ledger.put(
            replace(
                entry,
                metrics=metrics if better else entry.metrics,
                steps=int(result.get("step", entry.steps)),
                seconds=float(result.get("elapsed_s", entry.seconds)),
                run_id=result.get("run_id") or entry.run_id,
                reports=reports,
            )
        )

    def on_trial_complete(self, trial: Any, **_info: Any) -> None:
        """Tune's hook; a trial that ASHA stopped completes too."""
        result = trial.last_result or {}
        self._running.discard(trial.trial_id)
        if "trouble" in result:
            self._give_up(result["trouble"])
        with self._noting_trouble():
            entry = self._entry(trial)
            if "failure" in result:
                self._fail(entry, result["failure"], result.get("run_id"))
            elif "trouble" in result:
                self._end(replace(entry, run_id=result.get("run_id") or entry.run_id))
            elif result.get("stop") == "requested":
                self._end(entry)
            else:
                self._end(replace(entry, status="finished" if "stop" in result else "stopped"))

    def on_trial_error(self, trial: Any, **_info: Any) -> None:
        """Tune's hook; the trial's process failed more often than it may."""
        error = trial.get_error()
        lines = [] if error is None else str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[-1] if lines else "its process was killed more often than it may be"
        self._running.discard(trial.trial_id)
        with self._noting_trouble():
            entry = self._entry(trial)
            self._fail(entry, reason, entry.run_id)

    @contextlib.contextmanager
    def _noting_trouble(self) -> Iterator[None]:
        """An error of the store ends the search; Tune would take one from here for an error of the trial."""
        try:
            yield
        except UnreachableError as error:
            self._give_up(str(error))

    def _give_up(self, trouble: str) -> None:
        self.trouble = self.trouble or trouble
        self.stopper.ask()

    def _entry(self, trial: Any) -> Trial:
        settings = settings_of(trial.config, self._job)
        key = spaces.key(settings)
        entry = self._ledger.get(key)
        if entry is None:
            entry = Trial(key, len(self._ledger), settings)
            self._ledger.put(entry)
        return entry

    def _fail(self, entry: Trial, error: str, run_id: str | None) -> None:
        """A trial failed, unless the store that it needs fails as well."""
        self._job.folder.check_writable()
        self._end(replace(entry, status="failed", error=error, run_id=run_id))

    def _end(self, entry: Trial) -> None:
        # The ledger comes last: a trial that it has as ended is not looked at again.
        self._close_run(entry)
        self._ledger.put(entry)

    def _close_run(self, entry: Trial) -> None:
        if self._tracking is None or entry.run_id is None:
            return
        status = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED", "open": "KILLED"}[entry.status]
        send_unsent(self._tracking, self._job.folder.child("trials", entry.key), entry.run_id)
        self._tracking.set_tags(entry.run_id, {"rnnlm.trial_status": entry.status})
        self._tracking.end_run(entry.run_id, status)


class _StopAll(ray.tune.Stopper):
    """Ends the search once it was asked to and no trial runs any more, or the time to save is over."""

    def __init__(self, any_running: Callable[[], bool]) -> None:
        self._any_running = any_running
        self._asked_at: float | None = None

    def ask(self) -> None:
        """Let the search end."""
        self._asked_at = self._asked_at or time.monotonic()

    def __call__(self, *_: Any) -> bool:
        """Whether to stop one trial; never, they do that themselves."""
        return False

    def stop_all(self) -> bool:
        """Whether to stop all."""
        if self._asked_at is None:
            return False
        return not self._any_running() or time.monotonic() - self._asked_at > STOP_GRACE_S


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
