import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rnnlm.errors import RnnlmError
from rnnlm.integrations.checkpoint_store import CheckpointStore, checkpoint_name
from rnnlm.storage import Store
from rnnlm.training import checkpoint
from rnnlm.training.checkpoint import read_weights
from rnnlm.training.collective import Alone
from rnnlm.training.guard import Divergence
from rnnlm.training.loop import training_steps
from rnnlm.training.state import TrainingRun, export_weights

MakeRun = Callable[..., TrainingRun]


def after(run: TrainingRun, steps: int) -> TrainingRun:
    for report in training_steps(run):
        if report.step == steps:
            break
    return run


def test_training_goes_on_while_a_checkpoint_is_written(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, write = threading.Event(), checkpoint._write
    monkeypatch.setattr(checkpoint, "_write", lambda *given: may_write.wait(30) and write(*given))
    store, run = CheckpointStore(Store(str(tmp_path)), keep=2), make_run()
    steps = training_steps(run)
    next(steps)
    expected = export_weights(run)

    store.save(run, Alone())
    next(steps)
    assert store.steps() == []
    may_write.set()
    store.wait(Alone())

    assert store.steps() == [1]
    written = read_weights(tmp_path / checkpoint_name(1))
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())
    assert any(not torch.equal(written[name], tensor) for name, tensor in export_weights(run).items())


def test_the_newest_and_the_best_are_kept(make_run: MakeRun, tmp_path: Path) -> None:
    store, run = CheckpointStore(Store(str(tmp_path)), keep=2), make_run()
    for report in training_steps(run):
        run.state.best_step = 2
        store.save(run, Alone())
        if report.step == 6:
            break
    store.wait(Alone())

    assert store.steps() == [2, 5, 6]
    assert store.best_or_last(2) == checkpoint_name(2)
    assert store.best_or_last(1) == checkpoint_name(6)


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    make_run: MakeRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, run = CheckpointStore(Store(str(tmp_path)), keep=2), make_run()
    steps = training_steps(run)
    for _ in range(2):
        next(steps)
        store.save(run, Alone())
    store.wait(Alone())
    path = tmp_path / checkpoint_name(2) / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")

    with caplog.at_level(logging.WARNING):
        assert store.newest(Alone()) == 1

    assert store.passed_over == [2]
    assert f"{checkpoint_name(2)}: is damaged" in caplog.text
    run.state.step, run.state.best_step = 1, None
    store.save(run, Alone())
    store.wait(Alone())
    assert store.steps() == [1]


def test_a_write_that_failed_is_told_on_all_workers_and_leaves_nothing(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    store, run = CheckpointStore(Store(str(tmp_path)), keep=2), make_run()
    monkeypatch.setattr(checkpoint, "_flush", full)
    store.save(after(run, 1), Alone())

    with pytest.raises(RnnlmError, match="No space left"):
        store.wait(Alone())
    assert not (tmp_path / checkpoint_name(1)).exists()
    store.wait(Alone())
    with pytest.raises(RnnlmError, match="worker 0 could not write"):
        store.wait(Second())


class Second(Alone):
    """A worker whose worker 0 has a problem."""

    rank, world_size = 1, 2

    def any(self, flag: bool) -> bool:
        return True


def test_values_that_are_not_finite_are_a_divergence_on_all_workers(make_run: MakeRun, tmp_path: Path) -> None:
    store, run = CheckpointStore(Store(str(tmp_path)), keep=2), after(make_run(), 3)
    with torch.no_grad():
        run.named_parameters()["output_bias"][3] = float("inf")

    with pytest.raises(Divergence, match="step 3: output_bias has values that are not finite") as caught:
        store.save(run, Alone())

    assert caught.value.step == 3
    assert store.steps() == []
    with pytest.raises(Divergence, match="a weight has values"):
        checkpoint.take_snapshot(_as_second(run))


def _as_second(run: TrainingRun) -> TrainingRun:
    run.collective = Second()
    return run


def test_who_must_not_write_any_more_does_not(make_run: MakeRun, tmp_path: Path) -> None:
    def refuse() -> None:
        raise RnnlmError("another process has gone on")

    store = CheckpointStore(Store(str(tmp_path)), keep=2, check=refuse)
    store.save(after(make_run(), 1), Alone())

    with pytest.raises(RnnlmError, match="gone on"):
        store.wait(Alone())
    assert list(tmp_path.iterdir()) == []
