"""A training as a Ray Train run: started, watched, asked to stop, and told about.

Ray's part is to place the workers, to join them with `torch.distributed`, and to start them again when one dies. What they
do is in `train_worker`. The checkpoints are ours, so a restart, by Ray or by running the command again, goes on from the
newest one that is whole.
"""

import dataclasses
import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from rnnlm import errors, memory
from rnnlm.errors import RnnlmError
from rnnlm.experiment import Experiment
from rnnlm.integrations.ray_cluster import MEETING_VARIABLE, Placement, Session
from rnnlm.integrations.train_worker import HISTORY_FILE, STOP_FILE, WorkerJob, train_on_worker
from rnnlm.storage import Store
from rnnlm.training.starts import PROGRESS_FILE

_log = logging.getLogger(__name__)

MAX_STARTUP_FAILURES = 3
"""Times that Ray tries to get the workers started. How often they may die later is decided by `rnnlm.training.starts`."""
ELASTIC_STARTUP_S = 20
"""Seconds after which a training that may have fewer workers begins with those that are there."""
STOP_GRACE_S = 20.0
"""Seconds in which workers that are asked to stop may save; then they are given up."""
PEER_TIMEOUT_S = 600
"""Seconds after which a worker that waits for the others gives up."""
ELASTIC_LOOK_S = 30.0
"""Seconds between looks for room for more workers."""
_POLL_S = 0.5
_NOT_NEEDED = (PlacementGroupCleanerCallback, DatasetsCallback)

OnProgress = Callable[[int, int | None, Mapping[str, float]], None]


@dataclass(frozen=True)
class TrainJob:
    """One training.

    Attributes:
        experiment: model, recipe, seed.
        vocab_size: of the tokenizer.
        tokens: store with `tokens/`; each worker maps what it reads into memory.
        folder: where checkpoints and everything else of this training go; the same folder again goes on with it.
        placement: its processes.
        tracking_uri: MLflow's; None logs nothing.
        run_id: the MLflow run that gets the curves.
        stop: a folder in which a `stop.json` stops this training too.
        labels: added to what is reported to Ray.
        init: a folder with the weights to begin with; None: new ones.
    """

    experiment: Experiment
    vocab_size: int
    tokens: Store
    folder: Store
    placement: Placement
    tracking_uri: str | None = None
    run_id: str | None = None
    stop: Store | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    init: Store | None = None


@dataclass(frozen=True)
class TrainResult:
    """What a training reached.

    Attributes:
        checkpoint: name of the best checkpoint in the training's folder (of the last one where nothing was validated);
            None where it stopped before the first.
        last_checkpoint: name of the last one.
        metrics: of the best validation.
        step: steps done. `planned_steps`, and `best_step` of the best validation (0: none), count likewise.
        seconds: wall time from the first step to the last, over all attempts.
        tokens: real target tokens trained on.
        tokens_per_second: by the time of the steps, validation apart.
        stop: why it ended: `finished`, `patience`, `time`, or `requested`.
        peak_mb: the largest resident sets of all workers together, in 10^6 bytes.
        parameters: trained values, `total` and `without_embeddings`.
        startup_s: from the call to the first sign of the workers.
        notes: what differs from the process that wrote the checkpoint which this one went on from.
        divergences: what the guard saw and went on after, a line each.
        damaged: names of checkpoints that were passed over, as they were not what had been written.
        restarts: times that it went on from a checkpoint, or began anew, over all attempts; `steps_again` are the steps
            that were taken again for it, at least.
        history: name of the Parquet file with a row for each step.
        attempt: name of the Ray run; each call has a new one.
    """

    checkpoint: str | None
    last_checkpoint: str | None
    metrics: dict[str, float]
    step: int
    planned_steps: int
    best_step: int
    seconds: float
    tokens: int
    tokens_per_second: float
    stop: str
    peak_mb: float = 0.0
    parameters: dict[str, int] = field(default_factory=dict)
    startup_s: float = 0.0
    notes: tuple[str, ...] = ()
    divergences: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    restarts: int = 0
    steps_again: int = 0
    history: str | None = HISTORY_FILE
    attempt: str = ""

    @property
    def stopped(self) -> bool:
        """Whether it was asked to stop before its end."""
        return self.stop == "requested"


def train(
    job: TrainJob,
    session: Session | None = None,
    *,
    on_progress: OnProgress | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Run a training to its end, or until asked to stop.

    Args:
        job: what to train. With `placement.num_workers` 0 everything happens in this process, without Ray's processes.
        session: the Ray to use; may be None without workers.
        on_progress: called about twice a second with step, planned steps and the latest metrics.
        stop_requested: polled; once true, the workers save, and the result says `requested`.

    Raises:
        RnnlmError: it diverged, or its workers died again and again without coming any further.
    """
    if session is None and job.placement.num_workers:
        raise ValueError("workers need a session")
    started_here = session is None or session.started_here
    attempt = new_attempt(job)
    fit = _Fit(trainer(job, attempt, started_here), job.folder.child("attempts"), attempt)
    return fit.watch(on_progress, stop_requested)


def new_attempt(job: TrainJob) -> str:
    """A name that no attempt has had: Ray takes a run of a known name for the same run."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}-{job.experiment.name}"[:80]


def trainer(
    job: TrainJob,
    attempt: str,
    started_here: bool,
    *,
    trial: bool = False,
    callbacks: list[Any] | None = None,
) -> TorchTrainer:
    """Ray's trainer for a job, ready to `fit`."""
    placement = job.placement
    attempts = job.folder.child("attempts")
    stop = job.stop or attempts.child(attempt)
    worker_job = WorkerJob(
        experiment=job.experiment.model_dump(mode="json", by_alias=True),
        vocab_size=job.vocab_size,
        tokens=job.tokens.uri,
        folder=job.folder.uri,
        attempt=f"attempts/{attempt}",
        stop=stop.path(STOP_FILE),
        num_threads=placement.cpus_per_worker,
        use_gpu=placement.gpus_per_worker > 0,
        tracking_uri=job.tracking_uri,
        run_id=job.run_id,
        trial=trial,
        labels=dict(job.labels),
        init=None if job.init is None else job.init.uri,
    )
    make, joining = (_LocalTrainer, _LocalConfig) if started_here else (TorchTrainer, TorchConfig)
    return make(
        train_on_worker,
        train_loop_config=dataclasses.asdict(worker_job),
        torch_config=joining(timeout_s=PEER_TIMEOUT_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=_num_workers(placement),
            use_gpu=placement.gpus_per_worker > 0,
            resources_per_worker=placement.resources_per_worker(),
            elastic_resize_monitor_interval_s=ELASTIC_LOOK_S,
        ),
        run_config=ray.train.RunConfig(
            name=attempt,
            storage_path=attempts.uri,
            failure_config=ray.train.FailureConfig(
                max_failures=-1, controller_failure_limit=-1 if placement.is_elastic else MAX_STARTUP_FAILURES
            ),
            callbacks=callbacks,
            worker_runtime_env=None if started_here else {"env_vars": _worker_environment()},
        ),
    )


def _num_workers(placement: Placement) -> int | tuple[int, int]:
    """As Ray wants it; with a range, a group that lost a worker goes on without it, and takes in what comes."""
    if placement.most_workers is None or not placement.is_elastic:
        return placement.num_workers
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(ELASTIC_STARTUP_S))
    return placement.num_workers, placement.most_workers


def _worker_environment() -> dict[str, str]:
    """Of workers on other hosts: what of ours they need to reach MLflow, and how they get memory."""
    return memory.ENVIRONMENT | {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}


class _LocalTrainer(TorchTrainer):
    """A trainer for a Ray that ends with us, with two helper processes fewer.

    Ray's cleaner of placement groups asks the dashboard, which such a Ray has not, and would outlive the run; and its
    manager of datasets has nothing to manage, as workers map their tokens into memory themselves.
    """

    def _create_default_callbacks(self) -> list[Any]:
        every = super()._create_default_callbacks()
        return [callback for callback in every if not isinstance(callback, _NOT_NEEDED)]


class _LocalConfig(TorchConfig):
    """As Ray's, for workers of one host."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What joins the workers."""
        return _LocalBackend


class _LocalBackend(_TorchBackend):
    """Workers of one host find one another by a file.

    With Ray's own way, a socket, worker 0 listens on all interfaces as long as the training takes, and asks nobody for a token.
    """

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Join the workers over a file that is new for each start, as an old one says where workers of before were.

        It stays until our command ends: workers write into it once more when they do.
        """
        folder = tempfile.mkdtemp(prefix="group-", dir=os.environ[MEETING_VARIABLE])
        worker_group.execute(_set_torch_distributed_env_vars)
        joined = [
            worker_group.execute_single_async(
                rank,
                _setup_torch_process_group,
                backend=backend_config.backend,
                world_rank=rank,
                world_size=len(worker_group),
                init_method=f"file://{folder}/store",
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]
        ray.get(joined)


class _Fit:
    """`trainer.fit()` in a thread of its own.

    In the main thread Ray would put its own handler on SIGINT, which aborts the workers instead of letting them save.
    """

    def __init__(self, trainer: TorchTrainer, attempts: Store, name: str) -> None:
        self._trainer = trainer
        self._attempts = attempts
        self._name = name
        self._result: Any = None
        self._error: BaseException | None = None
        self._started = time.monotonic()
        self._startup_s = 0.0
        self._progress: dict[str, Any] | None = None
        self._thread = threading.Thread(target=self._run, name="ray-train-fit", daemon=True)

    def watch(self, on_progress: OnProgress | None, stop_requested: Callable[[], bool]) -> TrainResult:
        """Wait for the end, pass on progress, pass on the wish to stop."""
        self._thread.start()
        stop_at: float | None = None
        try:
            while self._thread.is_alive():
                self._thread.join(_POLL_S)
                if stop_at is None and stop_requested():
                    stop_at = time.monotonic()
                    self._ask_to_stop()
                self._look(on_progress)
                if stop_at is not None and self._is_given_up(stop_at):
                    return self._interrupted()
        except BaseException:
            self._ask_to_stop()
            raise
        return self._finish()

    def _run(self) -> None:
        try:
            self._result = self._trainer.fit()
        except BaseException as error:
            self._error = error

    def _ask_to_stop(self) -> None:
        self._attempts.write_json(f"{self._name}/{STOP_FILE}", {"time": time.time()})

    def _look(self, on_progress: OnProgress | None) -> None:
        file = f"{self._name}/{PROGRESS_FILE}"
        if not self._attempts.exists(file):
            return
        progress = self._attempts.read_json(file)
        if self._progress is None:
            self._startup_s = time.monotonic() - self._started
        if on_progress is not None and progress != self._progress:
            on_progress(progress["step"], progress["total"], progress["metrics"])
        self._progress = progress

    def _is_given_up(self, stop_at: float) -> bool:
        """Workers that have not begun have nothing to save."""
        return self._thread.is_alive() and (self._progress is None or time.monotonic() - stop_at > STOP_GRACE_S)

    def _interrupted(self) -> TrainResult:
        step = self._progress["step"] if self._progress else 0
        total = (self._progress["total"] if self._progress else None) or 0
        return TrainResult(
            checkpoint=None,
            last_checkpoint=None,
            metrics={},
            step=step,
            planned_steps=total,
            best_step=0,
            seconds=0.0,
            tokens=0,
            tokens_per_second=0.0,
            stop="requested",
            startup_s=self._startup_s,
            history=None,
            attempt=self._name,
        )

    def _finish(self) -> TrainResult:
        if self._error is not None:
            raise _explain(self._error) from self._error
        values = self._result.return_value
        self._attempts.delete(self._name)
        if "error" in values:
            raise _error_kind(values["error_kind"])(values["error"])
        return TrainResult(
            checkpoint=values["checkpoint"],
            last_checkpoint=values["last_checkpoint"],
            metrics=values["metrics"],
            step=values["step"],
            planned_steps=values["planned_steps"],
            best_step=values["best_step"],
            seconds=values["elapsed_s"],
            tokens=values["tokens"],
            tokens_per_second=values["tokens"] / max(values["steps_s"], 1e-9),
            stop=values["stop"],
            peak_mb=values["peak_mb"],
            parameters=values["parameters"],
            startup_s=self._startup_s,
            notes=tuple(values["notes"]),
            divergences=tuple(values["divergences"]),
            damaged=tuple(values["damaged"]),
            restarts=values["restarts"],
            steps_again=values["steps_again"],
            attempt=self._name,
        )


def _error_kind(name: str) -> type[RnnlmError]:
    kind = getattr(errors, name, RnnlmError)
    return kind if isinstance(kind, type) and issubclass(kind, RnnlmError) and name != "ConfigError" else RnnlmError


def _explain(error: BaseException) -> RnnlmError:
    """Our error for one of Ray's: what the first worker that failed said."""
    if isinstance(error, RnnlmError):
        return error
    failures = getattr(error, "worker_failures", None) or {}
    first = next(iter(failures.values()), error)
    cause = getattr(first, "_base_exc", None) or first
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return RnnlmError(f"training failed: {type(cause).__name__}: {lines[-1] if len(lines) > 20 else lines[0]}")
