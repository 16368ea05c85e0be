"""What runs in every process of a training: the loop of `rnnlm.training`, with a store, MLflow and Ray around it.

The processes talk to the command that started them through small files in the folder of this attempt, `progress.json` and
`stop.json`: it may sit on another host, and a named actor would be one more process.
"""

import contextlib
import dataclasses
import io
import logging
import resource
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.train
import safetensors.torch
import torch
import torch.distributed as dist

from rnnlm.artifacts import INIT_FILE
from rnnlm.data.shards import has_split, read_tokens
from rnnlm.errors import RnnlmError, UnreachableError
from rnnlm.experiment import Experiment
from rnnlm.integrations.batch_tracker import UNSENT_FILE, BatchTracker, Point
from rnnlm.integrations.checkpoint_store import CheckpointStore, checkpoint_name
from rnnlm.models.build import freeze, num_parameters
from rnnlm.storage import Store
from rnnlm.training.build import build_run, seeded_model, start_at_frequencies
from rnnlm.training.checkpoint import load_checkpoint, read_state
from rnnlm.training.collective import Alone, Collective, TorchCollective
from rnnlm.training.guard import Divergence, after
from rnnlm.training.loop import training_steps
from rnnlm.training.starts import PROGRESS_FILE, Starts
from rnnlm.training.state import StepReport, TrainingRun, TrainingState

if TYPE_CHECKING:
    from rnnlm.integrations.mlflow_tracking import Tracking

_log = logging.getLogger(__name__)

STOP_FILE = "stop.json"
HISTORY_FILE = "history.parquet"
PROGRESS_UNITS = 1000
"""Reports to Ray say how far a training is in these parts of its planned steps."""
_LOCAL_POLL_S = 0.5
_REMOTE_POLL_S = 2.0


@dataclass(frozen=True)
class WorkerJob:
    """What a worker is told; plain values, as it may travel to another host.

    Attributes:
        experiment: the whole tree of the experiment.
        vocab_size: of the tokenizer.
        tokens: store with `tokens/`.
        folder: the training's folder.
        attempt: name of the folder of this attempt, below the training's.
        stop: store path of the file whose existence asks to stop.
        num_threads: CPU threads.
        use_gpu: whether this worker has a GPU.
        tracking_uri: MLflow's; None logs nothing.
        run_id: the MLflow run.
        trial: whether validations are reported to Ray Tune, from this process.
        labels: added to each report to Ray.
        init: folder with the weights to begin with; None: new ones.
    """

    experiment: dict[str, Any]
    vocab_size: int
    tokens: str
    folder: str
    attempt: str
    stop: str
    num_threads: int
    use_gpu: bool = False
    tracking_uri: str | None = None
    run_id: str | None = None
    trial: bool = False
    labels: dict[str, Any] = dataclasses.field(default_factory=dict)
    init: str | None = None


def train_on_worker(values: Mapping[str, Any]) -> dict[str, Any]:
    """Train until the end, or until asked to stop; go on from the newest checkpoint if there is one.

    Args:
        values: the fields of a `WorkerJob`.

    Returns:
        What was reached, as worker 0 knows it: `step`, `planned_steps`, `best_step`, `metrics` (of the best
        validation), `elapsed_s`, `tokens`, `stop`, `checkpoint`, `last_checkpoint`, `notes`, `damaged`, `restarts`,
        `steps_again`. Or `error` and `error_kind`, when trying again cannot help.
    """
    worker = Worker(WorkerJob(**values))
    with contextlib.ExitStack() as stack:
        return worker.work(stack)


class Worker:
    """One process of a training."""

    def __init__(self, job: WorkerJob) -> None:
        self._job = job
        self._experiment = Experiment.parse(job.experiment)
        self._folder = Store(job.folder)
        self._collective: Collective = Alone()
        self._starts: Starts | None = None
        self._checkpoints = CheckpointStore(self._folder, self._experiment.train.keep_checkpoints, self._check)
        self._outside: _Outside | None = None
        self._notes: tuple[str, ...] = ()

    def work(self, stack: contextlib.ExitStack) -> dict[str, Any]:
        """Set up, train, tell what was reached."""
        # Before the first arithmetic, as the threads that it starts take this over. Saturated gates come close to zero, and
        # numbers below 1e-38, which nothing here can tell from zero, cost a processor several times the time.
        torch.set_flush_denormal(True)
        torch.set_num_threads(self._experiment.compute.threads or self._job.num_threads)
        # With --workers 0 this process goes on to evaluate, which is to come out as in one that has not trained.
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._collective = TorchCollective()
        if self._collective.rank == 0:
            self._starts = Starts(self._folder)
            self._outside = stack.enter_context(_Outside(self._job, self._folder))
        try:
            return self._work()
        except Exception as error:
            if self._starts is not None:
                self._starts.failed(f"{type(error).__name__}: {error}")
            raise

    def _work(self) -> dict[str, Any]:
        run, problem = None, None
        try:
            run = self._set_up()
        except RnnlmError as error:
            problem = error
        if self._collective.any(run is None):
            return _failure(problem or RnnlmError("another worker could not start"))
        assert run is not None
        while True:
            problem = self._train(run)
            if not isinstance(problem, Divergence):
                return _failure(problem) if problem else self._finish(run)
            try:
                run = self._go_back(run, problem)
            except RnnlmError as error:
                return _failure(error)

    def _go_back(self, diverged: TrainingRun, divergence: Divergence) -> TrainingRun:
        """The run of the last checkpoint, changed so that it need not diverge again. On all workers alike."""
        run = self._set_up(diverged.state)
        run.state = after(divergence, diverged.state, run.state, self._experiment.train.guard)
        _log.warning("%s; going on from step %d, %s", divergence, run.state.step, _changes(run))
        return run

    def _set_up(self, diverged: TrainingState | None = None) -> TrainingRun:
        """A new run, taken to the newest checkpoint if there is one; in fp32 if it has diverged before."""
        experiment, job = self._experiment, self._job
        step = self._checkpoints.newest(self._collective)
        if diverged is None:
            self._begin(step)
        checkpoint = self._checkpoints.fetch(step) if step else None
        has_diverged = diverged is not None or bool(
            checkpoint and read_state(checkpoint, verify=False)["state"].get("divergences")
        )
        compute = experiment.compute.model_copy(update={"precision": "fp32"}) if has_diverged else experiment.compute
        tokens = Store(job.tokens)
        train_tokens = read_tokens(tokens, "train")
        model = seeded_model(experiment.model, job.vocab_size, experiment.seed)
        if job.init is None:
            start_at_frequencies(model, train_tokens)
        else:
            safetensors.torch.load_model(model, str(Store(job.init).fetch(INIT_FILE)))
            freeze(model, experiment.init.freeze)
        run = build_run(
            model,
            train_tokens=train_tokens,
            valid_tokens=read_tokens(tokens, "valid") if has_split(tokens, "valid") else None,
            train=experiment.train,
            optim=experiment.optim,
            compute=compute,
            seed=experiment.seed,
            collective=self._collective,
            device=_device(job),
        )
        if checkpoint is not None:
            notes = load_checkpoint(checkpoint, run)
            if diverged is None:
                # Going back after a divergence is no resumption.
                self._notes = notes
        return run

    def _check(self) -> None:
        """Whether this is still the start of the training that counts."""
        if self._starts is not None:
            self._starts.check()

    def _begin(self, step: int) -> None:
        """Write down that the workers start from this checkpoint, unless that has become pointless. Collective."""
        problem = None
        try:
            if self._starts is not None:
                self._starts.begin(self._job.attempt, step, self._collective.world_size)
        except RnnlmError as error:
            problem = error
        if self._collective.any(problem is not None):
            raise problem or RnnlmError("another worker gave up")

    def _train(self, run: TrainingRun) -> RnnlmError | None:
        """Run the loop. Returns what ends the training for good, which the loop raises on all workers alike."""
        outside = self._outside
        steps = training_steps(run, stop_requested=(lambda: False) if outside is None else outside.stop_requested)
        while True:
            try:
                report = next(steps, None)
                if report is None:
                    self._checkpoints.wait(self._collective)
                    return None
                self._after_step(run, report)
            except UnreachableError:
                raise
            except RnnlmError as error:
                return error

    def _after_step(self, run: TrainingRun, report: StepReport) -> None:
        outside = self._outside
        if outside is not None:
            outside.saw(report)
        if report.checkpoint:
            if outside is not None:
                # What the checkpoint says is done has to be logged: those steps will not be trained again.
                outside.flush()
            self._checkpoints.save(run, self._collective)
        if report.validation is not None and report.stop is None:
            # The last one comes with the result of the run: a scheduler must not cut off what follows it.
            progress = {
                "step": report.step,
                "progress": round(PROGRESS_UNITS * report.step / report.planned_steps),
                "elapsed_s": report.elapsed_s,
            }
            metrics = {**self._job.labels, **report.validation, **progress}
            if self._job.trial:
                from ray import tune

                tune.report(metrics)
            else:
                ray.train.report(metrics)

    def _finish(self, run: TrainingRun) -> dict[str, Any]:
        columns = run.history.columns()
        if self._outside is not None:
            buffer = io.BytesIO()
            pq.write_table(pa.table(columns), buffer)
            self._folder.write_bytes(HISTORY_FILE, buffer.getvalue())
        (peak_kb,) = self._collective.sum([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])
        best_step = run.state.best_step or 0
        last = checkpoint_name(run.state.step)
        return {
            "step": run.state.step,
            "planned_steps": run.state.planned_steps,
            "best_step": best_step,
            "metrics": _metrics_at(run, best_step),
            "elapsed_s": run.state.elapsed_s,
            "tokens": int(sum(columns["tokens"])),
            "steps_s": float(sum(columns["seconds"])),
            "peak_mb": peak_kb * 1024 / 1e6,
            "parameters": num_parameters(run.task.model),
            "stop": run.state.stop,
            "checkpoint": self._checkpoints.best_or_last(best_step),
            "last_checkpoint": last,
            "notes": list(self._notes),
            "divergences": run.state.divergences,
            "damaged": [checkpoint_name(step) for step in self._checkpoints.passed_over],
            "restarts": 0 if self._starts is None else self._starts.restarts,
            "steps_again": 0 if self._starts is None else self._starts.steps_again,
        }


class _Outside:
    """Worker 0's side of what leaves the training: progress, the wish to stop, MLflow. All of it in the background."""

    def __init__(self, job: WorkerJob, folder: Store) -> None:
        self._job = job
        self._folder = folder
        self._attempt = folder.child(*job.attempt.split("/"))
        self._progress: dict[str, Any] = {"step": 0, "total": None, "metrics": {}}
        self._stop = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="outside", daemon=True)
        self._tracker = self._start_tracker()
        self._has_unsent = False

    def __enter__(self) -> "_Outside":
        self._write_progress()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._closing.set()
        self._thread.join()
        if kind is None:
            self._write_progress()
        if self._tracker is not None:
            # What a server that is away has not got is sent later, by whoever started this training.
            with contextlib.suppress(UnreachableError):
                self._tracker.close()
            self._keep_unsent()

    def stop_requested(self) -> bool:
        """Whether somebody wants the training to save and stop."""
        return self._stop.is_set()

    def saw(self, report: StepReport) -> None:
        """Take note of a step."""
        metrics = self._progress["metrics"] | (report.validation or {})
        for point in report.points:
            metrics |= point.metrics
            if self._tracker is not None:
                self._tracker.log(point.metrics, point.step)
        if report.loss_nats is not None:
            metrics["loss_nats"] = report.loss_nats
        self._progress = {"step": report.step, "total": report.planned_steps, "metrics": metrics}

    def flush(self) -> None:
        """Send all curves; what cannot be sent goes into a file beside the checkpoint."""
        if self._tracker is not None:
            self._tracker.flush()
            self._keep_unsent()

    def _keep_unsent(self) -> None:
        assert self._tracker is not None
        points = [list(point) for point in self._tracker.pending()]
        if points or self._has_unsent:
            self._folder.write_json(UNSENT_FILE, points)
            self._has_unsent = bool(points)

    def _start_tracker(self) -> BatchTracker | None:
        uri, run_id = self._job.tracking_uri, self._job.run_id
        if uri is None or run_id is None:
            return None
        unsent = self._folder.read_json(UNSENT_FILE) if self._folder.exists(UNSENT_FILE) else []
        return BatchTracker(lambda: _tracking(uri), run_id, unsent=[Point(*point) for point in unsent])

    def _watch(self) -> None:
        interval_s = _LOCAL_POLL_S if self._folder.local() is not None else _REMOTE_POLL_S
        stop = Store(self._job.stop.rpartition("/")[0])
        while not self._closing.wait(interval_s):
            # A store that does not answer for a moment is no reason to end a training.
            with contextlib.suppress(UnreachableError):
                if stop.exists(STOP_FILE):
                    self._stop.set()
                self._write_progress()

    def _write_progress(self) -> None:
        self._attempt.write_json(PROGRESS_FILE, self._progress | {"time": time.time()})


def _tracking(uri: str) -> "Tracking":
    from rnnlm.integrations.mlflow_tracking import Tracking

    return Tracking(uri, check=False)


def _device(job: WorkerJob) -> str:
    if not job.use_gpu:
        return "cpu"
    if not dist.is_initialized():
        # Without a worker group Ray does not know of devices; it shows a trial's process the one that is its own.
        return "cuda:0"
    from ray.train.torch import get_device

    return str(get_device())


def _metrics_at(run: TrainingRun, best_step: int) -> dict[str, float]:
    """The best validation, else the last; empty where there was none."""
    validations = run.history.validations
    chosen = next((row for row in validations if row["step"] == best_step), validations[-1] if validations else {})
    return {key: value for key, value in chosen.items() if key != "step"}


def _changes(run: TrainingRun) -> str:
    return f"without {len(run.state.skipped)} windows, at {run.state.rate_factor:g} of the learning rate, in fp32"


def _failure(error: RnnlmError) -> dict[str, Any]:
    return {"error": str(error), "error_kind": type(error).__name__}
