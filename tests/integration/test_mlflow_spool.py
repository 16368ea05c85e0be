"""A tracking server that goes away: nothing is lost, nothing comes twice, and the order stays."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from mlflow.tracking import MlflowClient

from pipelines import run_all
from rnnlm.errors import UnreachableError, UsageError
from rnnlm.integrations import mlflow_spool
from rnnlm.integrations.batch_tracker import UNSENT_FILE, Point, send_unsent
from rnnlm.integrations.mlflow_spool import Spool, SpooledTracking
from rnnlm.integrations.mlflow_tracking import Tracking
from rnnlm.storage import Store

pytestmark = pytest.mark.integration


class Server:
    """A database of runs that can be out of reach."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = Store(str(folder / "store"))
        self.uri = f"sqlite:///{folder}/store/mlflow.db"
        self.is_away = False
        self.calls = 0
        calls = ("log_batch", "log_artifact", "log_artifacts", "log_text", "get_metric_history", "set_terminated")
        for name in calls:
            monkeypatch.setattr(MlflowClient, name, self._guarded(getattr(MlflowClient, name)))
        monkeypatch.setattr(mlflow_spool, "RETRY_S", 0.0)

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.is_away:
                raise MlflowException("no answer", TEMPORARILY_UNAVAILABLE)
            return method(*args, **kwargs)

        return call

    def connect(self) -> SpooledTracking:
        return SpooledTracking(self.uri, str(self.store.local("mlartifacts")), self.store)


@pytest.fixture
def server(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    (tmp_path / "store").mkdir()
    shutil.copy(database, tmp_path / "store/mlflow.db")
    return Server(tmp_path, monkeypatch)


def _points(*steps: int) -> list[Point]:
    return [Point("loss", step / 2, step, 1_000 + step) for step in steps]


def _everything(tracking: Tracking, run_id: str, folder: Path) -> None:
    tracking.set_tags(run_id, {"colour": "red"})
    tracking.log_metrics(run_id, {"bleu": 5.0}, step=7)
    (folder / "one.txt").write_text("1")
    (folder / "many").mkdir()
    (folder / "many/two.txt").write_text("2")
    tracking.log_artifact(run_id, folder / "one.txt")
    tracking.log_artifacts(run_id, folder / "many", "several")
    tracking.log_json(run_id, {"a": 1}, "value.json")
    tracking.log_table(run_id, {"x": [1, 2]}, "table.json")
    tracking.log_figure(run_id, Figure(), "pictures/plot.png")
    tracking.end_run(run_id)


def test_what_was_kept_arrives_whole_and_in_order(server: Server, tmp_path: Path) -> None:
    tracking = server.connect()
    run_id = tracking.start_run("e", "name", "train")
    tracking.log_points(run_id, _points(1, 2))
    server.is_away = True
    _everything(tracking, run_id, tmp_path)
    tracking.log_points(run_id, _points(2, 3))
    assert len(tracking.spool) == 9
    assert Tracking(server.uri).run_status(run_id) == "RUNNING"
    (tmp_path / "one.txt").unlink()

    with pytest.raises(UnreachableError):
        tracking.flush()
    with pytest.raises(UnreachableError):
        server.connect()
    server.is_away = False
    later = server.connect()

    assert len(later.spool) == 0
    assert list(server.store.files("spool")) == []
    run = later.client.get_run(run_id)
    assert (run.info.status, run.data.tags["colour"], run.data.metrics["bleu"]) == ("FINISHED", "red", 5.0)
    assert [(m.step, m.value) for m in later.client.get_metric_history(run_id, "loss")] == [
        (1, 0.5),
        (2, 1.0),
        (3, 1.5),
    ]
    found = {each.path for each in later.client.list_artifacts(run_id)}
    assert found >= {"one.txt", "several", "value.json", "table.json", "pictures"}
    value = Path(later.client.download_artifacts(run_id, "value.json")).read_text()
    assert json.loads(value) == {"a": 1}


def test_calls_wait_for_those_before_them(server: Server) -> None:
    tracking = server.connect()
    run_id = tracking.start_run("e", "name", "train")
    server.is_away = True
    tracking.set_tags(run_id, {"colour": "red"})
    server.is_away = False
    tracking.set_tags(run_id, {"colour": "blue"})
    assert len(tracking.spool) == 0
    assert tracking.client.get_run(run_id).data.tags["colour"] == "blue"


def test_what_waits_tells_no_password(server: Server) -> None:
    tracking = server.connect()
    run_id = tracking.start_run("e", "name", "train")
    server.is_away = True
    tracking.set_tags(run_id, {"rnnlm.output": "s3://me:word@bucket/x"})
    (entry,) = server.store.files("spool")
    assert server.store.read_json(entry)["arguments"]["tags"] == {"rnnlm.output": "s3://bucket/x"}

    server.is_away = False
    tracking.uri = "postgresql://me:word@db/mlflow"
    tracking.client.delete_run(run_id)
    with pytest.raises(UsageError, match="1 calls wait for runs that postgresql://db/mlflow does not have"):
        tracking.flush()


def test_a_server_that_is_away_is_not_asked_at_every_call(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_spool, "RETRY_S", 60.0)
    tracking = server.connect()
    run_id = tracking.start_run("e", "name", "train")
    server.is_away = True
    before = server.calls
    for number in range(5):
        tracking.set_tags(run_id, {f"tag{number}": "x"})
    assert server.calls == before + 1
    assert len(tracking.spool) == 5


def test_points_that_a_training_left_are_handed_on_once(server: Server) -> None:
    tracking = server.connect()
    run_id = tracking.start_run("e", "name", "train")
    folder = server.store.child("training")
    send_unsent(tracking, folder, run_id)
    folder.write_json(UNSENT_FILE, [list(point) for point in _points(1, 2)])
    server.is_away = True
    send_unsent(tracking, folder, run_id)
    assert not folder.exists(UNSENT_FILE)
    server.is_away = False
    assert tracking.flush() == 1
    assert tracking.logged_steps(run_id, "loss") == {1, 2}


def test_what_waits_for_another_server_stays(server: Server, database: Path, tmp_path: Path) -> None:
    tracking = server.connect()
    run_id = tracking.start_run("e", "name", "train")
    server.is_away = True
    tracking.log_once(run_id, {"bleu": 1.0})
    tracking.end_run(run_id)
    server.is_away = False
    shutil.copy(database, tmp_path / "other.db")
    other = SpooledTracking(f"sqlite:///{tmp_path}/other.db", None, server.store)

    with pytest.raises(UsageError, match="2 calls wait for runs that sqlite"):
        other.flush()
    elsewhere = other.start_run("e", "name", "train")
    other.log_once(elsewhere, {"bleu": 2.0})
    assert other.run_metrics(elsewhere) == {"bleu": 2.0}

    assert tracking.flush() == 2
    assert (tracking.run_status(run_id), tracking.run_metrics(run_id)) == ("FINISHED", {"bleu": 1.0})


def test_a_figure_that_arrived_without_an_answer_is_not_logged_twice(server: Server) -> None:
    tracking = server.connect()
    run_id = tracking.start_run("e", "name", "train")
    Tracking.log_points(tracking, run_id, [Point("bleu", 1.0, 0, 1)])
    server.is_away = True
    tracking.log_once(run_id, {"bleu": 2.0})
    server.is_away = False
    assert tracking.flush() == 1
    assert len(tracking.client.get_metric_history(run_id, "bleu")) == 1


def test_two_commands_may_keep_calls_in_one_store(server: Server) -> None:
    tracking, other = server.connect(), server.connect()
    run_id = tracking.start_run("e", "name", "train")
    server.is_away = True
    tracking.set_tags(run_id, {"a": "1"})
    other.spool._names = list  # type: ignore[method-assign]  # as if both had looked at the same time
    other.set_tags(run_id, {"b": "2"})
    server.is_away = False
    assert tracking.flush() == 2
    assert {"a", "b"} <= tracking.client.get_run(run_id).data.tags.keys()


def test_flush_by_command(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    tracking = server.connect()
    run_id = tracking.start_run("e", "name", "train")
    server.is_away = True
    tracking.end_run(run_id)
    arguments = ["--flush", "--store", server.store.uri, "--tracking-uri", server.uri]
    assert run_all.main(arguments) == 1
    server.is_away = False
    assert run_all.main(arguments) == 0
    assert "nothing waits for MLflow any more" in capfd.readouterr().out
    assert len(Spool(server.store)) == 0
    assert Tracking(server.uri).run_status(run_id) == "FINISHED"
