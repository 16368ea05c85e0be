import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rnnlm.batch.lease import LeaseHeldError
from rnnlm.errors import RnnlmError, UnreachableError, UsageError
from rnnlm.integrations.batch_tracker import BatchTracker, Point
from rnnlm.integrations.mlflow_tracking import Tracking, check_reachable, flatten

pytestmark = pytest.mark.integration


@pytest.fixture
def run_id(tracking: Tracking) -> str:
    return tracking.start_run("curves", "run", "train")


def curve(tracking: Tracking, run_id: str, key: str) -> dict[int, list[float]]:
    """All values of a metric by step."""
    found: dict[int, list[float]] = {}
    for metric in tracking.client.get_metric_history(run_id, key):
        found.setdefault(metric.step, []).append(metric.value)
    return found


def test_a_run_has_its_stage_parent_params_and_inputs(tracking: Tracking) -> None:
    parent = tracking.start_run("words", "all", "pipeline")
    params = {"optim": {"lr": 0.1, "beta1": None}, "model": {"kind": "lstm"}, "data": {"train": ["a", "b"]}}
    run_id = tracking.start_run(
        "words", "train", "train", parent, {"extra": "yes"}, params, {"tokens": "ab" * 32, "tokenizer": "cd" * 32}
    )

    run = tracking.client.get_run(run_id)

    assert run.info.run_name == "train"
    assert run.data.tags["rnnlm.stage"] == "train"
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["extra"] == "yes"
    assert run.data.params == {"optim.lr": "0.1", "model.kind": "lstm", "data.train": '["a", "b"]'}
    digests = {entry.dataset.name: entry.dataset.digest for entry in run.inputs.dataset_inputs}
    assert digests == {"tokens": ("ab" * 32)[:36], "tokenizer": ("cd" * 32)[:36]}
    assert tracking.run_status(run_id) == "RUNNING"


def test_an_experiment_is_found_again_and_has_an_absolute_artifact_place(tracking: Tracking) -> None:
    first = tracking.experiment_id("a b/batch")
    tracking.client.delete_experiment(first)

    assert tracking.experiment_id("a b/batch") == first
    location = tracking.client.get_experiment(first).artifact_location
    assert location == f"{Path(tracking.artifact_root or '').as_uri()}/a%2520b%252Fbatch"


def test_runs_are_found_by_their_tags(tracking: Tracking, run_id: str) -> None:
    tracking.set_tags(run_id, {"rnnlm.trial": "abc"})

    assert tracking.find_run("curves", {"rnnlm.stage": "train", "rnnlm.trial": "abc"}) == run_id
    assert tracking.find_run("curves", {"rnnlm.trial": "other"}) is None
    assert tracking.has_run(run_id)
    assert not tracking.has_run("0" * 32)
    tracking.client.delete_run(run_id)
    assert not tracking.has_run(run_id)


def test_a_run_with_an_identity_is_made_once_and_completed(tracking: Tracking) -> None:
    identity = {"rnnlm.key": "one"}
    first = tracking.start_run("keys", "run", "train", params={"a": 1}, identity=identity)
    tracking.end_run(first, "FAILED")

    again = tracking.start_run("keys", "run", "train", None, None, {"a": 2, "b": 3}, {"tokens": "d"}, identity)
    thrice = tracking.start_run("keys", "run", "train", None, None, {"a": 2, "b": 3}, {"tokens": "d"}, identity)

    assert first == again == thrice
    run = tracking.client.get_run(first)
    assert (run.info.status, run.data.params) == ("RUNNING", {"a": "1", "b": "3"})
    assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["tokens"]
    assert tracking.start_run("keys", "run", "train", identity={"rnnlm.key": "two"}) != first


def test_a_figure_is_logged_once_at_a_step(tracking: Tracking, run_id: str) -> None:
    for value in (1.0, 2.0):
        tracking.log_once(run_id, {"bleu": value}, step=3)
    tracking.log_once(run_id, {"bleu": 4.0}, step=4)
    assert curve(tracking, run_id, "bleu") == {3: [1.0], 4: [4.0]}


def test_a_training_waits_for_its_values_but_not_for_a_server_that_hangs() -> None:
    hang, failed = threading.Event(), threading.Event()

    def connect() -> Tracking:
        if not failed.is_set():
            hang.wait(20)
            failed.set()
        raise UnreachableError("away")

    tracker = BatchTracker(connect, "run", every_s=0.05)
    tracker.log({"loss": 1.0}, 1)
    started = time.monotonic()
    tracker.flush(wait_s=0.2)
    assert 0.15 < time.monotonic() - started < 5
    hang.set()
    assert failed.wait(5)
    time.sleep(0.2)
    started = time.monotonic()
    tracker.flush(wait_s=20)
    assert time.monotonic() - started < 5
    assert len(tracker.pending()) == 1
    with pytest.raises(UnreachableError):
        tracker.close()


def test_a_run_is_closed_by_how_its_block_ends(tracking: Tracking) -> None:
    names = ("fine", "failed", "killed", "refused")
    fine, failed, killed, refused = (tracking.start_run("ends", name, "train") for name in names)
    with tracking.closing(fine):
        assert tracking.run_status(fine) == "RUNNING"
    with pytest.raises(RnnlmError), tracking.closing(failed):
        raise RnnlmError("no")
    with pytest.raises(KeyboardInterrupt), tracking.closing(killed):
        raise KeyboardInterrupt
    with pytest.raises(LeaseHeldError), tracking.closing(refused):
        raise LeaseHeldError("another process does this, and has the run")

    assert [tracking.run_status(run) for run in (fine, failed, killed)] == ["FINISHED", "FAILED", "KILLED"]
    assert tracking.run_status(refused) == "RUNNING"
    tracking.reopen_run(killed)
    assert tracking.run_status(killed) == "RUNNING"


def test_artifacts_lie_below_the_root(tracking: Tracking, run_id: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    tracking.log_artifact(run_id, tmp_path / "a.txt", "one")
    tracking.log_artifacts(run_id, tmp_path, "all")
    tracking.log_json(run_id, {"ü": 1}, "report.json")
    for _ in range(2):
        tracking.log_table(run_id, {"source": ["x"], "target": [float("nan")]}, "samples.json")
    shown = tracking.client.get_run(run_id).data.tags["mlflow.loggedArtifacts"]
    assert json.loads(shown) == [{"path": "samples.json", "type": "table"}]

    root = Path(tracking.artifact_root or "") / "curves" / run_id / "artifacts"

    assert (root / "one" / "a.txt").read_text() == "hello"
    assert (root / "all" / "a.txt").read_text() == "hello"
    assert json.loads((root / "report.json").read_text()) == {"ü": 1}
    assert json.loads((root / "samples.json").read_text()) == {"columns": ["source", "target"], "data": [["x", None]]}


def test_a_figure_is_an_artifact(tracking: Tracking, run_id: str) -> None:
    from matplotlib.figure import Figure

    tracking.log_figure(run_id, Figure(figsize=(1, 1)), "plots/empty.png")

    assert (Path(tracking.artifact_root or "") / "curves" / run_id / "artifacts/plots/empty.png").stat().st_size > 0


def test_more_points_than_a_batch_holds_all_arrive(tracking: Tracking, run_id: str) -> None:
    tracker = BatchTracker(lambda: tracking, run_id)
    for step in range(1, 1201):
        tracker.log({"train/loss_nats": 1 / step, "optim/learning_rate": step}, step)
    tracker.close()

    assert tracking.logged_steps(run_id, "train/loss_nats") == set(range(1, 1201))
    assert tracking.run_metrics(run_id) == {"train/loss_nats": 1 / 1200, "optim/learning_rate": 1200}
    assert tracker.pending() == []


def test_a_step_is_logged_once_however_often_it_is_given(tracking: Tracking, run_id: str) -> None:
    for _ in range(2):
        tracker = BatchTracker(lambda: tracking, run_id)
        tracker.log({"loss": 1.0}, 1)
        tracker.log({"loss": 1.0}, 1)
        tracker.flush()
        tracker.log({"loss": 1.0}, 1)
        tracker.close()
    later = BatchTracker(lambda: tracking, run_id, unsent=[Point("loss", 1.0, 1, 0), Point("loss", 2.0, 2, 0)])
    later.log({"loss": 3.0}, 3)
    later.close()

    assert curve(tracking, run_id, "loss") == {1: [1.0], 2: [2.0], 3: [3.0]}


def test_values_are_sent_in_the_background(tracking: Tracking, run_id: str) -> None:
    tracker = BatchTracker(lambda: tracking, run_id, every_s=0.05)
    tracker.log({"loss": 1.0}, 1)
    deadline = time.monotonic() + 20
    while tracker.pending() and time.monotonic() < deadline:
        time.sleep(0.05)

    assert tracker.pending() == []
    assert tracking.logged_steps(run_id, "loss") == {1}
    tracker.close()


def test_a_server_that_is_away_for_a_while_loses_nothing(tracking: Tracking, run_id: str) -> None:
    away = [True]

    def connect() -> Tracking:
        if away[0]:
            raise UnreachableError("away")
        return tracking

    tracker = BatchTracker(connect, run_id)
    tracker.log({"loss": 1.0}, 1)
    tracker.flush()
    assert [point.step for point in tracker.pending()] == [1]
    away[0] = False
    tracker.log({"loss": 2.0}, 2)
    tracker.close()

    assert curve(tracking, run_id, "loss") == {1: [1.0], 2: [2.0]}


def test_a_server_that_stays_away_is_told_at_the_end() -> None:
    def connect() -> Tracking:
        raise UnreachableError("away")

    tracker = BatchTracker(connect, "run")
    tracker.log({"loss": 1.0}, 1)

    with pytest.raises(UnreachableError, match="away"):
        tracker.close()
    assert len(tracker.pending()) == 1


def test_secrets_and_length_of_params() -> None:
    tree = {
        "store": "s3://name:word@bucket/x",
        "a": {"password": "p", "api_key": "k", "batch_tokens": 5, "db": {"access-key": "z"}},
        "long": "x" * 7000,
        "flag": True,
    }

    flat = flatten(tree)

    assert flat["store"] == "s3://bucket/x"
    assert flat["a.password"] == flat["a.api_key"] == flat["a.db.access-key"] == "(hidden)"
    assert flat["a.batch_tokens"] == "5"
    assert flat["flag"] == "true"
    assert len(flat["long"]) == 6000


def test_tags_tell_no_password(tracking: Tracking) -> None:
    command = {"rnnlm.command": "a.toml --tracking-uri postgresql://me:word@db/mlflow --json"}
    run_id = tracking.start_run("secrets", "run", "pipeline", tags=command)
    assert (
        tracking.client.get_run(run_id).data.tags["rnnlm.command"]
        == "a.toml --tracking-uri postgresql://db/mlflow --json"
    )

    tracking.set_tags(run_id, {"rnnlm.output": "s3://key:word@bucket/x", "number": "3"})

    tags = tracking.client.get_run(run_id).data.tags
    assert (tags["rnnlm.output"], tags["number"]) == ("s3://bucket/x", "3")


def test_no_server_is_said_within_seconds() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    started = time.monotonic()

    with pytest.raises(UnreachableError, match=rf"http://127.0.0.1:{port}: does not answer"):
        Tracking(f"http://name:word@127.0.0.1:{port}")
    with pytest.raises(UnreachableError) as caught:
        check_reachable(f"postgresql://name:word@127.0.0.1:{port}/db")

    assert "word" not in str(caught.value)
    assert time.monotonic() - started < 5


@pytest.fixture
def server_status() -> Iterator[tuple[str, list[int]]]:
    """Address of a server, and what it answers."""
    status = [200]

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", status
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("code", [200, 401, 404])
def test_any_answer_of_a_working_server_will_do(server_status: tuple[str, list[int]], code: int) -> None:
    address, status = server_status
    status[0] = code

    check_reachable(address)


def test_a_broken_server_is_not_reachable(server_status: tuple[str, list[int]]) -> None:
    address, status = server_status
    status[0] = 503

    with pytest.raises(UnreachableError, match="answers 503"):
        check_reachable(address)


def test_a_database_needs_a_folder_that_can_be_made(tmp_path: Path) -> None:
    check_reachable(f"sqlite:///{tmp_path}/new/folder/mlflow.db")
    (tmp_path / "file").write_text("")

    with pytest.raises(UnreachableError):
        check_reachable(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_what_does_not_exist_is_the_users_mistake(tracking: Tracking) -> None:
    with pytest.raises(UsageError):
        tracking.run_status("0" * 32)


def test_a_changed_param_is_refused(tracking: Tracking, run_id: str) -> None:
    tracking.log_params(run_id, {"a": 1})
    tracking.log_params(run_id, {"a": 1})

    with pytest.raises(RnnlmError):
        tracking.log_params(run_id, {"a": 2})
