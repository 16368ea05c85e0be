"""One trial of a search, in its own process: a Train run, with its results handed to Ray Tune."""

import functools
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback

from rnnlm.errors import RnnlmError, UnreachableError
from rnnlm.experiment import Experiment
from rnnlm.integrations.checkpoint_store import UnwrittenCheckpoint
from rnnlm.integrations.mlflow_tracking import PARENT_TAG, Tracking
from rnnlm.integrations.ray_cluster import Placement
from rnnlm.integrations.ray_train import TrainJob, new_attempt, trainer
from rnnlm.integrations.train_worker import PROGRESS_UNITS, STOP_FILE
from rnnlm.storage import Store
from rnnlm.training import names
from rnnlm.tuning import space as spaces

TRIAL_TAG = "rnnlm.trial"
_TRIAL_FILE = "trial.json"
_RETRY_S = 3.0
_TROUBLE = (UnreachableError.__name__, UnwrittenCheckpoint.__name__)
"""Kinds of errors that are no fault of a trial: others would meet them too."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchJob:
    """One search.

    Attributes:
        experiment: its `tune` part says what is searched; the rest is what the settings are laid over.
        vocab_size: of the tokenizer.
        tokens: store with `tokens/`.
        folder: where ledger and trials go; the same folder again goes on with the search.
        placement: the processes of one trial.
        concurrency: trials at one time.
        tracking_uri: MLflow's; None logs nothing. `artifact_root` as in `Tracking`.
        parent_run_id: the MLflow run that the trials are shown below.
        metric: what is minimised.
        init: folder with the weights that trials begin with; None: new ones.
    """

    experiment: Experiment
    vocab_size: int
    tokens: Store
    folder: Store
    placement: Placement
    concurrency: int = 1
    tracking_uri: str | None = None
    artifact_root: str | None = None
    parent_run_id: str | None = None
    metric: str = names.VALID_PERPLEXITY_LANED
    init: Store | None = None


def variant(experiment: Experiment, settings: spaces.Settings) -> Experiment:
    """The experiment of a trial: the settings laid over, as many steps as a trial may take.

    Raises:
        ConfigError: a path that does not exist, or a value that its setting does not admit.
    """
    tree = spaces.lay_over(experiment.model_dump(mode="json", by_alias=True), settings)
    if experiment.tune.max_steps is not None:
        tree["train"] = tree["train"] | {"max_steps": experiment.tune.max_steps}
    return Experiment.parse(tree, "tune.space")


def run_trial(config: dict[str, Any], *, job: SearchJob, started_here: bool) -> None:
    """One trial, in its own process: a Train run, with its results handed to Tune.

    The last result has `stop` (why it ended), `failure` (a message; trying the trial again could not help) or `trouble` (a
    message; the disk or the store fails, which is no fault of the trial). One without a figure has no `progress` either, so
    that the scheduler does not compare it with others.
    """
    settings = settings_of(config, job)
    labels: dict[str, Any] = {"key": spaces.key(settings)}
    nothing = {job.metric: math.inf}
    try:
        _check_stop(job)
        experiment = variant(job.experiment, settings)
        labels["run_id"] = _reached(job, lambda: _child_run(job, labels["key"], settings))
        values = _train(job, experiment, labels, started_here)
    except _Stopped:
        ray.tune.report({**nothing, **labels, "stop": "requested"})
        return
    except RnnlmError as error:
        values = {"error": str(error), "error_kind": type(error).__name__}
    if "error" in values:
        ray.tune.report({**nothing, **labels, "trouble" if _is_trouble(values) else "failure": values["error"]})
        return
    final = {"step": values["step"], "elapsed_s": values["elapsed_s"], "stop": values["stop"]}
    if job.metric in values["metrics"] and values["stop"] != "requested":
        final["progress"] = PROGRESS_UNITS
    ray.tune.report({**nothing, **labels, **values["metrics"], **final})


def _is_trouble(values: Mapping[str, Any]) -> bool:
    """Whether an error is no fault of the trial. The error of workers that ended again and again is named in the text."""
    return values["error_kind"] in _TROUBLE or any(f": {kind}: " in values["error"] for kind in _TROUBLE)


def settings_of(config: Mapping[str, Any], job: SearchJob) -> spaces.Settings:
    """The settings that Tune gave a trial."""
    tune = job.experiment.tune
    return dict(config["settings"]) if tune.sampler == "random" else spaces.from_indices(tune.space, config)


def _train(job: SearchJob, experiment: Experiment, labels: dict[str, Any], started_here: bool) -> dict[str, Any]:
    train_job = TrainJob(
        experiment,
        job.vocab_size,
        job.tokens,
        job.folder.child("trials", labels["key"]),
        job.placement,
        job.tracking_uri,
        labels["run_id"],
        stop=job.folder,
        labels=labels,
        init=job.init,
    )
    in_process = not job.placement.num_workers
    callbacks = None if in_process else [TuneReportCallback()]
    run = trainer(train_job, new_attempt(train_job), started_here, trial=in_process, callbacks=callbacks)
    return dict(run.fit().return_value)


class _Stopped(Exception):
    """The search was asked to stop before a trial began."""


def _check_stop(job: SearchJob) -> None:
    if job.folder.exists(STOP_FILE):
        raise _Stopped


def _reached(job: SearchJob, ask: Callable[[], str | None]) -> str | None:
    """Ask MLflow, however long it is away: that is no fault of a trial's settings.

    Raises:
        UnreachableError: it is the store that fails, and the MLflow of a full disk with it.
    """
    while True:
        try:
            return ask()
        except UnreachableError as error:
            _log.warning("%s; the trial waits", error)
        job.folder.check_writable()
        _check_stop(job)
        time.sleep(_RETRY_S)


def _child_run(job: SearchJob, key: str, settings: spaces.Settings) -> str | None:
    """The trial's MLflow run: the one it had before, else a new one below the search's."""
    if job.tracking_uri is None:
        return None
    tracking = _tracking(job.tracking_uri, job.artifact_root)
    folder = job.folder.child("trials", key)
    if folder.exists(_TRIAL_FILE):
        run_id = str(folder.read_json(_TRIAL_FILE)["run_id"])
        if tracking.has_run(run_id):
            tracking.reopen_run(run_id)
            return run_id
    identity = {TRIAL_TAG: key, PARENT_TAG: job.parent_run_id or ""}
    run_id = tracking.start_run(
        job.experiment.name, f"trial-{key}", "tune", job.parent_run_id, params=settings, identity=identity
    )
    folder.write_json(_TRIAL_FILE, {"run_id": run_id, "settings": settings})
    return run_id


@functools.lru_cache(maxsize=1)
def _tracking(uri: str, artifact_root: str | None) -> Tracking:
    return Tracking(uri, artifact_root, check=False)
