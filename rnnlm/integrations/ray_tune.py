"""A hyperparameter search with Ray Tune: each trial is a Ray Train run, ASHA stops the losers, a ledger remembers.

A trial with one worker trains inside its Tune process (Train's local mode), and the process is used again for the next
trial: starting workers takes longer than a short trial. A trial with several workers gets a worker group of its own.
"""

import math
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import ray.tune
from ray.tune.search import Searcher

from rnnlm.errors import RnnlmError, UnreachableError
from rnnlm.integrations.mlflow_tracking import Tracking
from rnnlm.integrations.ray_cluster import Session
from rnnlm.integrations.ray_train import STOP_GRACE_S
from rnnlm.integrations.train_worker import PROGRESS_UNITS
from rnnlm.integrations.tune_resume import NewSettings, RememberingASHA
from rnnlm.integrations.tune_trial import SearchJob, run_trial, settings_of, variant
from rnnlm.integrations.tune_watcher import Watcher
from rnnlm.storage import Store
from rnnlm.tuning import space as spaces
from rnnlm.tuning.config import Choice, Dimension
from rnnlm.tuning.ledger import Ledger, Trial

_MAX_FAILURES = 1
"""Times that a trial whose process died is started again."""
_POLL_S = 0.5

OnTrials = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        trials: a row for each trial, as in the ledger.
        best: the trial with the lowest metric, if any trial got as far as a validation.
        stopped: whether it was asked to stop before its end.
        seconds: wall time of the search, start-up included.
    """

    trials: list[dict[str, Any]]
    best: Trial | None
    stopped: bool
    seconds: float


def search(
    job: SearchJob,
    session: Session,
    *,
    tracking: Tracking | None = None,
    on_progress: OnTrials | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> SearchResult:
    """Try `tune.trials` settings; a trial that fails is written down, and the search goes on.

    Where the disk or the store fails, the search ends instead, and trials that had not ended stay open.

    Args:
        job: what to search. Trials that its ledger has as ended are not run again; open ones go on.
        session: the Ray to use; it has to have room for one trial.
        tracking: where the trials' runs are closed.
        on_progress: called about twice a second with ended trials, all trials and the best metrics.
        stop_requested: polled; once true, running trials save and the search ends.

    Raises:
        ConfigError: the space does not fit the experiment.
        UnreachableError: the disk or the store failed.
        RnnlmError: Tune itself failed.
    """
    started = time.monotonic()
    variant(job.experiment, spaces.sample(job.experiment.tune.space, job.experiment.seed, 0))
    ledger = Ledger(job.folder)
    watcher = Watcher(job, ledger, tracking)
    left = job.experiment.tune.trials - watcher.num_ended
    stopped = False
    if left > 0:
        tuner = _tuner(job, session, ledger, watcher, left)
        stopped = _Tuning(tuner, watcher).watch(on_progress, stop_requested)
    best = ledger.best(job.metric)
    if not stopped:
        _tidy(job.folder, ledger, best)
    return SearchResult([asdict(trial) for trial in ledger.trials], best, stopped, time.monotonic() - started)


def _tuner(job: SearchJob, session: Session, ledger: Ledger, watcher: Watcher, left: int) -> ray.tune.Tuner:
    tune = job.experiment.tune
    placement = job.placement
    request: dict[str, float] = (
        {"node:__internal_head__": 0.001}
        if placement.num_workers
        else {"cpu": placement.cpus_per_worker, "gpu": placement.gpus_per_worker}
    )
    attempt = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    driver = ray.tune.with_parameters(run_trial, job=job, started_here=session.started_here)
    searching, param_space, num_samples = _proposals(job, ledger, left)
    return ray.tune.Tuner(
        ray.tune.with_resources(driver, request),
        param_space=param_space,
        tune_config=ray.tune.TuneConfig(
            metric=job.metric,
            mode="min",
            search_alg=searching,
            scheduler=RememberingASHA(
                ledger.trials,
                lambda trial: spaces.key(settings_of(trial.config, job)),
                time_attr="progress",
                max_t=PROGRESS_UNITS,
                grace_period=max(1, round(tune.grace_share * PROGRESS_UNITS)),
                reduction_factor=tune.reduction_factor,
                stop_last_trials=False,
            ),
            num_samples=num_samples,
            max_concurrent_trials=job.concurrency,
            reuse_actors=not placement.num_workers,
        ),
        run_config=ray.tune.RunConfig(
            name=attempt,
            storage_path=job.folder.child("attempts").uri,
            failure_config=ray.tune.FailureConfig(max_failures=_MAX_FAILURES),
            callbacks=[watcher],
            stop=watcher.stopper,
            verbose=0,
        ),
    )


def _proposals(job: SearchJob, ledger: Ledger, left: int) -> tuple[Searcher | None, dict[str, Any] | None, int]:
    """Where settings come from: Tune's searcher, its parameter space, and how often that is sampled."""
    tune, seed = job.experiment.tune, job.experiment.seed
    open_settings = [trial.settings for trial in ledger.trials if trial.is_open]
    if tune.sampler == "random":
        taken = {trial.key for trial in ledger.trials}
        fresh = spaces.distinct_samples(tune.space, seed, max(0, left - len(open_settings)), taken)
        return None, {"settings": ray.tune.grid_search([*open_settings[:left], *fresh])}, 1
    return _optuna(job, ledger, open_settings), None, left


def _optuna(job: SearchJob, ledger: Ledger, open_settings: list[spaces.Settings]) -> Searcher:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = job.experiment.tune.space
    searcher = OptunaSearch(
        {path: _distribution(dimension) for path, dimension in space.items()},
        metric=job.metric,
        mode="min",
        points_to_evaluate=[spaces.to_indices(space, settings) for settings in open_settings],
        sampler=optuna.samplers.TPESampler(seed=job.experiment.seed + len(ledger)),
    )
    ended = [trial for trial in ledger.trials if not trial.is_open]
    for trial in ended:
        if job.metric in trial.metrics:
            searcher.add_evaluated_point(spaces.to_indices(space, trial.settings), trial.metrics[job.metric])
    results = {trial.key: trial.metrics.get(job.metric) for trial in ended}
    return NewSettings(searcher, lambda proposed: spaces.key(spaces.from_indices(space, proposed)), results)


def _distribution(dimension: Dimension) -> Any:
    """A dimension as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Choice):
        return CategoricalDistribution(range(len(dimension.values)))
    is_log = dimension.kind == "log_uniform"
    if dimension.integer:
        return IntDistribution(math.ceil(dimension.low), math.floor(dimension.high), log=is_log)
    return FloatDistribution(dimension.low, dimension.high, log=is_log)


class _Tuning:
    """`tuner.fit()` in a thread of its own, as Tune takes over SIGINT in the main thread."""

    def __init__(self, tuner: ray.tune.Tuner, watcher: Watcher) -> None:
        self._tuner = tuner
        self._watcher = watcher
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ray-tune-fit", daemon=True)

    def watch(self, on_progress: OnTrials | None, stop_requested: Callable[[], bool]) -> bool:
        """Wait for the end. Returns whether it was asked for."""
        self._watcher.clear()
        stop_at: float | None = None
        self._thread.start()
        try:
            while self._thread.is_alive():
                self._thread.join(_POLL_S)
                if stop_at is None and (stop_requested() or self._watcher.trouble is not None):
                    stop_at = time.monotonic()
                    self._watcher.ask_to_stop()
                if on_progress is not None:
                    on_progress(self._watcher.num_ended, self._watcher.num_trials, self._watcher.best_metrics)
                if stop_at is not None and time.monotonic() - stop_at > STOP_GRACE_S + 3:
                    break
        except BaseException:
            self._watcher.ask_to_stop()
            raise
        if self._watcher.trouble is not None:
            raise UnreachableError(
                f"{self._watcher.trouble}; no trial is lost by it: make room, or bring back what does not answer, and the "
                "same command goes on"
            )
        if self._error is not None and stop_at is None:
            raise RnnlmError(f"the search failed: {str(self._error).strip().splitlines()[-1]}") from self._error
        return stop_at is not None

    def _run(self) -> None:
        try:
            self._tuner.fit()
        except BaseException as error:
            self._error = error


def _tidy(folder: Store, ledger: Ledger, best: Trial | None) -> None:
    """A finished search keeps the weights of its best trial only, and nothing of Tune's; the ledger has all figures."""
    folder.delete("attempts")
    for trial in ledger.trials:
        if best is None or trial.key != best.key:
            folder.delete(f"trials/{trial.key}/checkpoints")
        folder.delete(f"trials/{trial.key}/attempts")
