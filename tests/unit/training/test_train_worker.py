import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rnnlm.data.ragged import Ragged
from rnnlm.data.shards import write_tokens
from rnnlm.experiment import build
from rnnlm.integrations.train_worker import Worker, WorkerJob
from rnnlm.storage import Store
from rnnlm.training.collective import Alone
from rnnlm.training.guard import Divergence
from rnnlm.training.loop import training_steps
from rnnlm.training.state import TrainingRun


@pytest.fixture
def job(tmp_path: Path) -> WorkerJob:
    tokens, random = Store(str(tmp_path / "tokens")), np.random.default_rng(0)
    for split, rows in (("train", 10), ("valid", 3)):
        documents = [random.integers(3, 20, 50, dtype=np.int32) for _ in range(rows)]
        write_tokens(tokens, split, {"text": Ragged.from_rows(documents)})
    values = {
        "name": "tiny",
        "task": "text",
        "data": {"train": "corpus.txt"},
        "model": {"kind": "language_model", "embedding_size": 8, "hidden_size": 8, "num_layers": 1},
        "train": {"lanes": 4, "bptt_length": 10, "max_steps": 12, "validate_every": 3},
    }
    return WorkerJob(
        experiment=build(values).model_dump(mode="json", by_alias=True),
        vocab_size=20,
        tokens=tokens.uri,
        folder=str(tmp_path / "run"),
        attempt="attempts/one",
        stop=str(tmp_path / "run" / "stop.json"),
        num_threads=1,
    )


def train_a_step(worker: Worker, run: TrainingRun) -> None:
    """And save it."""
    next(training_steps(run))
    worker._checkpoints.save(run, Alone())
    worker._checkpoints.wait(Alone())


def test_going_back_after_a_divergence_leaves_what_was_told_of_the_start(
    job: WorkerJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Worker(job)
    train_a_step(first, first._set_up())
    usual = torch.backends.cpu.get_cpu_capability()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "other")
    second = Worker(job)
    run = second._set_up()
    told = second._notes
    train_a_step(second, run)

    back = second._go_back(run, Divergence(3, "loss nan", 0.1))

    assert back.state.step == 2
    assert second._notes == told == (f"processor was {usual}, now is other",)


def train(job: WorkerJob, stop_requested: Callable[[TrainingRun], bool] = lambda _run: False) -> dict[str, Any]:
    """What comes out of a worker's training, times apart."""
    worker = Worker(job)
    run = worker._set_up()
    worker._outside = SimpleNamespace(  # type: ignore[assignment]
        saw=lambda _report: None, flush=lambda: None, stop_requested=lambda: stop_requested(run)
    )
    assert worker._train(run) is None
    found = worker._finish(run)
    return {name: value for name, value in found.items() if name not in ("elapsed_s", "steps_s", "peak_mb")}


def test_a_stop_where_a_validation_is_due_changes_neither_reports_nor_checkpoints(
    job: WorkerJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.train.report", lambda metrics: reported.append(metrics | {"elapsed_s": None}))
    expected = train(job)
    whole, reported[:] = list(reported), []
    parts = dataclasses.replace(job, folder=str(tmp_path / "parts"))

    assert train(parts, lambda run: run.state.step >= 6)["stop"] == "requested"
    assert [metrics["step"] for metrics in reported] == [3]
    assert train(parts) == expected

    assert reported == whole
    names = [sorted(path.name for path in (tmp_path / each / "checkpoints").iterdir()) for each in ("run", "parts")]
    assert names[1] == names[0]
