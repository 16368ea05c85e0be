import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from rnnlm.errors import DataError, RnnlmError
from rnnlm.experiment import Experiment
from rnnlm.integrations.mlflow_tracking import Tracking
from rnnlm.integrations.ray_cluster import Placement, Session
from rnnlm.integrations.ray_train import STOP_GRACE_S, TrainJob, TrainResult, train
from rnnlm.storage import Store
from rnnlm.training import names
from rnnlm.training.checkpoint import read_history, read_state

pytestmark = pytest.mark.integration

HERE = Placement(0)


def job_of(corpus: Any, folder: Path, experiment: Experiment, placement: Placement = HERE, **more: Any) -> TrainJob:
    return TrainJob(experiment, 20, corpus.tokens, Store(str(folder)), placement, **more)


def with_run(tracking: Tracking) -> dict[str, str]:
    return {"tracking_uri": tracking.uri, "run_id": tracking.start_run("trainings", "train", "train")}


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.parent.name.removeprefix("step-")) for path in folder.glob("checkpoints/*/checkpoint.json"))


def assert_curve_is_whole(tracking: Tracking, run_id: str, steps: int) -> None:
    logged = [metric.step for metric in tracking.client.get_metric_history(run_id, names.TRAIN_LOSS)]
    stride = -(-steps // 1000)
    assert sorted(logged) == list(range(stride, steps + 1, stride))


def test_a_training_leaves_checkpoints_curves_and_history(corpus: Any, tracking: Tracking, tmp_path: Path) -> None:
    logged = with_run(tracking)
    seen: list[tuple[int, int | None]] = []
    experiment = corpus.experiment(train={"keep_checkpoints": 1})

    result = train(
        job_of(corpus, tmp_path, experiment, **logged), on_progress=lambda step, total, _: seen.append((step, total))
    )

    assert (result.step, result.planned_steps, result.stop, result.stopped) == (40, 40, "finished", False)
    assert result.metrics.keys() == {names.VALID_PERPLEXITY_LANED}
    assert result.checkpoint == f"checkpoints/step-{result.best_step:09d}"
    assert result.last_checkpoint == "checkpoints/step-000000040"
    assert checkpoints(tmp_path) == sorted({result.best_step, 40})
    assert result.seconds > 0
    assert result.tokens_per_second > result.tokens / result.seconds
    assert seen[-1] == (40, 40)
    assert not (tmp_path / "attempts").exists() or not list((tmp_path / "attempts").iterdir())

    history = pq.read_table(tmp_path / str(result.history)).to_pydict()
    assert history["step"] == list(range(1, 41))
    assert sum(history["tokens"]) == result.tokens
    assert 1_500 < result.tokens <= 40 * 4 * 10
    assert_curve_is_whole(tracking, logged["run_id"], 40)
    assert tracking.logged_steps(logged["run_id"], names.VALID_PERPLEXITY_LANED) == {10, 20, 30, 40}
    assert tracking.run_metrics(logged["run_id"])[names.TRAIN_LOSS] == history["loss_nats"][-1]


def test_a_stopped_training_goes_on_as_if_nothing_had_been(corpus: Any, tracking: Tracking, tmp_path: Path) -> None:
    experiment = corpus.experiment(train={"max_steps": 2000, "validate_every": 500})
    whole = train(job_of(corpus, tmp_path / "whole", experiment))
    logged = with_run(tracking)
    job = job_of(corpus, tmp_path / "parts", experiment, **logged)
    reached: list[int] = []

    first = train(
        job, on_progress=lambda step, *_: reached.append(step), stop_requested=lambda: bool(reached) and reached[-1] > 0
    )
    second = train(job)
    third = train(job)

    assert len({first.attempt, second.attempt, third.attempt}) == 3
    assert first.stopped
    assert 0 < first.step < 2000
    assert first.last_checkpoint == f"checkpoints/step-{first.step:09d}"
    assert second.stop == "finished"
    assert second.metrics == whole.metrics
    assert second.best_step == whole.best_step
    assert (third.step, third.stop, third.metrics) == (second.step, second.stop, second.metrics)
    assert_curve_is_whole(tracking, logged["run_id"], 2000)


def test_a_torn_checkpoint_is_passed_over(corpus: Any, tmp_path: Path) -> None:
    experiment = corpus.experiment()
    whole = train(job_of(corpus, tmp_path, experiment))
    (tmp_path / "checkpoints/step-000000040/model.safetensors").write_bytes(b"torn")

    again = train(job_of(corpus, tmp_path, experiment))

    assert again.step == 40
    assert again.metrics == whole.metrics


def test_divergence_ends_the_training_with_its_message(corpus: Any, tmp_path: Path) -> None:
    optim = {"algorithm": "sgd", "lr": 1000.0, "clip_grad_norm": None, "warmup_share": 0.0, "schedule": "constant"}
    model = {"kind": "language_model", "cell": "elman", "embedding_size": 8, "hidden_size": 8, "num_layers": 1}
    experiment = corpus.experiment(optim=optim, model=model, train={"max_steps": 2000})

    with pytest.raises(RnnlmError, match="diverged 4 times"):
        train(job_of(corpus, tmp_path, experiment))


def test_a_spike_takes_training_back_to_its_checkpoint(corpus: Any, tmp_path: Path) -> None:
    # After a hundred quiet steps any change of the loss counts as a spike, until the patience with them is at its end.
    guard = {"loss_spike": 0.02, "max_divergences": 50}
    experiment = corpus.experiment(train={"max_steps": 160, "validate_every": 20, "guard": guard})

    result = train(job_of(corpus, tmp_path, experiment))

    assert result.divergences
    assert result.step == 160
    state = read_state(tmp_path / result.last_checkpoint)["state"]
    assert state["divergences"] == list(result.divergences)
    assert len(state["skipped"]) == len(state["divergences"])
    history = read_history(tmp_path / result.last_checkpoint)
    assert history["step"] == list(range(1, 161))
    assert history["learning_rate"][-1] < 0.6 * history["learning_rate"][99]


def test_too_little_data_is_the_datas_fault(corpus: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        train(job_of(corpus, tmp_path, corpus.experiment(train={"lanes": 100_000})))


def test_missing_tokens_are_told(corpus: Any, tmp_path: Path) -> None:
    job = TrainJob(corpus.experiment(), 20, Store(str(tmp_path / "nothing")), Store(str(tmp_path / "run")), HERE)

    with pytest.raises(RnnlmError, match="nothing"):
        train(job)


def test_workers_need_a_session(corpus: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="session"):
        train(job_of(corpus, tmp_path, corpus.experiment(), Placement(1)))


def is_worker(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # others come and go
        return False


def listening(process: psutil.Process) -> set[str]:
    """The addresses that a process listens on."""
    connections = process.net_connections("inet")
    return {each.laddr.ip.removeprefix("::ffff:") for each in connections if each.status == psutil.CONN_LISTEN}


class Killer:
    """Kills a training worker once there is a checkpoint, then asks to stop once training goes on beyond it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.killed_at: int | None = None
        self.stop = threading.Event()
        self.stopped_at = 0.0
        self.went_back = False
        self.listened: list[set[str]] = []
        self._last = 0

    def __call__(self, step: int, _total: int | None, _metrics: object) -> None:
        if self.killed_at is None and checkpoints(self.folder):
            workers = self._look()
            workers[-1].kill()
            self.killed_at = step
        elif self.killed_at is not None:
            self.went_back = self.went_back or step < self._last
            if self.went_back and step > self.killed_at + 10 and not self.stop.is_set():
                self._look()
                self.stopped_at = time.monotonic()
                self.stop.set()
        self._last = step

    def _look(self) -> list[psutil.Process]:
        workers = [process for process in psutil.Process().children(recursive=True) if is_worker(process)]
        assert len(workers) == 2
        self.listened.append(set().union(*map(listening, workers)))
        return workers


def test_two_workers_survive_a_death_and_stop_when_asked(
    ray_session: Session, corpus: Any, tracking: Tracking, tmp_path: Path
) -> None:
    steps = 20_000
    experiment = corpus.experiment(train={"max_steps": steps, "validate_every": 10_000, "checkpoint_every_s": 1.0})
    logged = with_run(tracking)
    killer = Killer(tmp_path)
    job = job_of(corpus, tmp_path, experiment, Placement(2), **logged)

    result: TrainResult = train(job, ray_session, on_progress=killer, stop_requested=killer.stop.is_set)

    assert killer.listened == [{"127.0.0.1"}] * 2
    assert killer.went_back
    assert time.monotonic() - killer.stopped_at < STOP_GRACE_S
    assert result.stopped
    assert killer.killed_at is not None
    assert killer.killed_at < result.step < steps
    assert result.last_checkpoint == f"checkpoints/step-{result.step:09d}"
    assert result.startup_s > 0
    logged_steps = tracking.logged_steps(logged["run_id"], names.TRAIN_LOSS)
    assert logged_steps == set(range(20, result.step + 1, 20))
    values = tracking.client.get_metric_history(logged["run_id"], names.TRAIN_LOSS)
    assert len(values) == len(logged_steps)

    shorter = corpus.experiment(train={"max_steps": steps, "validate_every": 10_000, "max_minutes": 1e-6})
    alone = train(job_of(corpus, tmp_path, shorter, HERE))
    assert alone.step >= result.step
    assert any("workers was 2, now is 1" in note for note in alone.notes)
