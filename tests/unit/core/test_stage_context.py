"""What stages share: places, records that match, and the MLflow run of a piece of work."""

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rnnlm import artifacts, experiment
from rnnlm.artifacts import Record
from rnnlm.batch.lease import LeaseHeldError, LeaseLostError, lease
from rnnlm.console import Console
from rnnlm.errors import UsageError
from rnnlm.interrupts import Interrupted, Interrupts
from rnnlm.stages import context as places
from rnnlm.stages.context import Context, Options, Work
from rnnlm.storage import Store

Make = Callable[..., Context]


@pytest.fixture
def make(desk: Path, memory_tracking: Any) -> Make:
    """Contexts of one store, each as a command of its own would have it."""

    def context(*overrides: str, **options: Any) -> Context:
        place = Options(str(desk / "store"), options.pop("tracking_uri", "sqlite:////x.db"), base=desk, **options)
        made = Context(experiment.load("small.toml", overrides), place, Console(), Interrupts())
        made._shared.tracking = memory_tracking
        return made

    return context


def worker(log: list[str], run_id: str | None = None) -> Callable[[Store], Work]:
    def work(folder: Store) -> Work:
        log.append(folder.uri)
        folder.write_bytes("made.txt", b"x")
        return Work({"made": "made.txt"}, {"count": 3}, run_id, {"valid/loss": 1.5}, "models:/m/2", ["done well"])

    return work


def run(context: Context, log: list[str], inputs: dict[str, str] | None = None, stage: str = "ingest") -> Any:
    return context.run_stage(stage, context.experiment.settings(stage), inputs or {}, worker(log))


def test_work_is_done_once(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    log: list[str] = []
    first = run(make(), log)
    assert (first.skipped, first.metrics, first.model_uri) == (False, {"valid/loss": 1.5}, "models:/m/2")
    assert first.notes == ["done well"]
    assert first.artifacts == {"record": f"{log[0]}/artifact.json", "made": f"{log[0]}/made.txt"}
    assert first.seconds >= 0
    again = run(make(), log)
    assert len(log) == 1
    assert (again.skipped, again.seconds, again.metrics, again.artifacts) == (True, 0.0, first.metrics, first.artifacts)
    assert "ingest: done already on " in capsys.readouterr().out


def test_other_settings_or_inputs_are_other_work(make: Make) -> None:
    log: list[str] = []
    run(make(), log)
    run(make("seed=1"), log)
    run(make("optim.lr=1"), log)  # not a setting of this stage
    run(make(), log, {"corpus": "other"})
    assert len(log) == len(set(log)) == 3


def test_a_newer_format_is_other_work(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    run(make(), log)
    monkeypatch.setitem(artifacts.FORMAT_NUMBERS, "ingest", 99)
    assert not run(make(), log).skipped
    assert len(set(log)) == 2


def test_force_does_it_again_from_nothing(make: Make) -> None:
    log: list[str] = []
    run(make(), log)
    Store(log[0]).write_bytes("left-over.txt", b"")
    forced = run(make(force=True), log)
    assert not forced.skipped
    assert log[0] == log[1]
    assert Store(log[0]).files() == ["artifact.json", "made.txt"]


def test_work_that_fails_leaves_no_record(make: Make) -> None:
    def broken(folder: Store) -> Work:
        folder.write_bytes("half.txt", b"")
        raise ValueError("no")

    context = make()
    with pytest.raises(ValueError, match="no"):
        context.run_stage("ingest", context.experiment.settings("ingest"), {}, broken)
    log: list[str] = []
    assert not run(make(), log).skipped


def test_a_record_whose_run_is_unknown_here_is_logged_again(make: Make, memory_tracking: Any) -> None:
    def attempt(context: Context) -> Any:
        def work(folder: Store) -> Work:
            with context.mlflow_run(folder, "train") as run_id:
                return Work(run_id=run_id)

        def relog(record: Record) -> Record:
            calls.append(record.run_id or "")
            return Record(**{**record.__dict__, "run_id": context.tracking.start_run("small", "train", "train")})

        return context.run_stage("train", context.experiment.settings("train"), {}, work, relog)

    calls: list[str] = []
    assert attempt(make()).run_id == "run0"
    skipped = attempt(make())
    assert (skipped.skipped, skipped.run_id, calls) == (True, "run0", [])
    memory_tracking.runs = {"another": {}}
    assert attempt(make()).run_id == "run1"
    assert calls == ["run0"]
    assert attempt(make()).run_id == "run1"
    assert calls == ["run0"]


def test_one_run_for_the_life_of_a_piece_of_work(make: Make, memory_tracking: Any, tmp_path: Path) -> None:
    folder = Store(str(tmp_path / "work"))
    with make().mlflow_run(folder, "train", {"tokens": "d1"}) as first:
        assert memory_tracking.runs[first]["status"] == "RUNNING"
    made = memory_tracking.runs[first]
    assert (made["experiment"], made["stage"], made["status"]) == ("small", "train", "FINISHED")
    assert made["inputs"] == {"tokens": "d1"}
    assert made["tags"]["rnnlm.task"] == "text"
    assert made["params"]["train"]["max_steps"] == 4
    with pytest.raises(ValueError, match="oops"), make().mlflow_run(folder, "train") as again:
        raise ValueError("oops")
    assert (again, made["status"]) == (first, "FAILED")
    with pytest.raises(Interrupted), make().mlflow_run(folder, "train") as again:
        raise Interrupted(2)
    assert (again, made["status"]) == (first, "KILLED")
    memory_tracking.runs.clear()
    memory_tracking.runs["taken"] = {}
    context = make()
    context.pipeline_run_id = "parent"
    with context.mlflow_run(folder, "train") as other:
        assert memory_tracking.runs[other]["parent_run_id"] == "parent"


def test_a_run_that_a_process_made_and_could_not_note_is_found(
    make: Make, memory_tracking: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Store(str(tmp_path / "work"))
    start_run = type(memory_tracking).start_run

    def made_and_died(*args: Any, **more: Any) -> str:
        start_run(memory_tracking, *args, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(memory_tracking, "start_run", made_and_died)
        with pytest.raises(KeyboardInterrupt), make().mlflow_run(folder, "train"):
            pass
    with make().mlflow_run(folder, "train") as run_id:
        pass
    assert (run_id, list(memory_tracking.runs)) == ("run0", ["run0"])

    # Work that begins anew, as after --force, has another key.
    folder.delete("run.json")
    with make().mlflow_run(folder, "train") as run_id:
        pass
    assert run_id == "run1"


def test_a_tracking_server_that_comes_back_keeps_its_run(make: Make, memory_tracking: Any, tmp_path: Path) -> None:
    folder = Store(str(tmp_path / "work"))
    other = type(memory_tracking)()
    other.runs["taken"] = {}

    def attempt(server: Any) -> str:
        context = make()
        context._shared.tracking = server
        with context.mlflow_run(folder, "train") as run_id:
            return str(run_id)

    assert [attempt(server) for server in (memory_tracking, other, memory_tracking, other)] == ["run0", "run1"] * 2
    assert (len(memory_tracking.runs), len(other.runs)) == (1, 2)


def test_force_makes_a_new_run(make: Make) -> None:
    def attempt(context: Context) -> str:
        def work(folder: Store) -> Work:
            with context.mlflow_run(folder, "train") as run_id:
                return Work(run_id=run_id)

        return str(context.run_stage("train", context.experiment.settings("train"), {}, work).run_id)

    assert [attempt(make(force=force)) for force in (False, False, True)] == ["run0", "run0", "run1"]


def test_the_newest_record_of_the_same_settings(make: Make) -> None:
    log: list[str] = []
    run(make(), log)
    run(make("seed=1"), log)
    assert make().newest("ingest").uri == log[0]
    assert make("seed=1").newest("ingest").uri == log[1]
    run(make(), log, {"corpus": "changed"})
    assert make().newest("ingest").uri == log[2]
    assert make().newest("ingest", {}).uri == log[0]


def test_a_record_belongs_to_records_of_the_same_experiment(make: Make) -> None:
    """Tokens of another corpus are not what a training of this experiment reads, although its settings are the same."""
    log: list[str] = []
    for shares in ((), ("data.valid_share=0.3",)):
        context = make(*shares)
        corpus = run(context, log)
        run(context, log, {"corpus": corpus.record.digest}, "tokenize_corpus")
    first, second = make().newest("tokenize_corpus"), make("data.valid_share=0.3").newest("tokenize_corpus")
    assert (first.uri, second.uri) == (log[1], log[3])
    assert first.settings == second.settings


def test_a_command_reads_what_it_has_made_itself(make: Make) -> None:
    log: list[str] = []
    run(make(), log)
    context = make()
    run(context, log)
    run(make(), log, {"corpus": "newer, of somebody else"})
    assert context.newest("ingest").uri == log[0]
    assert context.with_experiment(context.experiment).newest("ingest").uri == log[0]


def test_what_is_missing_is_named_with_the_remedy(make: Make, desk: Path) -> None:
    with pytest.raises(UsageError) as caught:
        make().newest("ingest")
    assert str(caught.value) == (
        f"small: no record of ingest in {desk}/store; first run: python -m pipelines.ingest EXPERIMENT.toml"
    )
    run(make(), [])
    with pytest.raises(UsageError, match=r"\(there are some with other settings\)"):
        make("seed=1").newest("ingest")


def test_from_names_a_record_by_run_or_digest(make: Make) -> None:
    log: list[str] = []
    old = run(make("seed=1"), log).record
    run(make(), log)
    assert make(from_run=old.digest[:12]).newest("ingest").uri == log[0]
    context = make()
    settings = context.experiment.settings("train")
    context.run_stage("train", settings, {}, worker([], "the-run"))
    assert make(from_run="the-run").newest("train").run_id == "the-run"
    assert make(from_run="the-run").newest("ingest").uri == log[1]  # it is no run of ingest
    with pytest.raises(UsageError, match=r"--from nobody: no stage of small in .* has such a run"):
        make(from_run="nobody").newest("ingest")


def test_shared_services_are_made_once_and_closed(make: Make) -> None:
    class Session:
        closed = 0

        def close(self) -> None:
            self.closed += 1

    session: Any = Session()
    context = make()
    context._shared.ray = session
    other = context.with_experiment(experiment.load("small.toml", ["name=other"]))
    assert other.ray is session
    assert other.tracking is context.tracking
    assert other.experiment.name == "other"
    other.close()
    context.close()
    assert session.closed == 1


def test_services_are_started_when_first_used(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    cluster = types.SimpleNamespace(connect=lambda *args, **kwargs: made.append((args, kwargs)) or "session")
    mlflow = types.SimpleNamespace(SpooledTracking=lambda *args: made.append(args) or "tracking")
    for name, module in (("ray_cluster", cluster), ("mlflow_spool", mlflow)):
        monkeypatch.setitem(__import__("sys").modules, f"rnnlm.integrations.{name}", module)
        monkeypatch.setattr(f"rnnlm.integrations.{name}", module, raising=False)
    context = make(address="10.0.0.1:6379")
    context._shared.tracking = None
    results: list[Any] = [context.ray, context.ray, context.tracking, context.tracking]
    assert results == ["session", "session", "tracking", "tracking"]
    connected = ("sqlite:////x.db", context.artifact_root, context.store)
    checked = {"store": context.store, "tracking_uri": "sqlite:////x.db"}
    assert made == [(("10.0.0.1:6379",), checked), connected]
    assert context.startup_s > 0
    context._shared.ray = None


def test_the_processes_of_a_training(make: Make) -> None:
    here = make(workers=0, cpus_per_worker=3).placement()
    assert (here.num_workers, here.cpus_per_worker, here.gpus_per_worker) == (0, 3, 0.0)
    assert make(workers=0).placement().cpus_per_worker >= 1
    asked: list[Any] = []
    session: Any = types.SimpleNamespace(placement=lambda *args: asked.append(args) or "placed")
    context = make(workers=2, gpus_per_worker=0.5)
    context._shared.ray = session
    placed: Any = context.placement()
    assert (placed, asked) == ("placed", [(2, None, 0.5, context.experiment.positions_per_step)])


def test_artifacts_lie_in_the_store_where_the_database_is_ours(make: Make, desk: Path) -> None:
    assert make().artifact_root == f"{desk}/store/mlartifacts"
    assert make(tracking_uri="postgresql+psycopg2://host/db").artifact_root == f"{desk}/store/mlartifacts"
    assert make(tracking_uri="http://host").artifact_root is None


@pytest.mark.parametrize(
    ("given", "variable", "expected"),
    [
        (None, None, "/base/store"),
        ("here", "there", "/base/here"),
        (None, "there", "/base/there"),
        (None, "", "/base/store"),
        ("/abs/x", None, "/abs/x"),
        ("../up", None, "/up"),
        ("s3://bucket/x", None, "s3://bucket/x"),
    ],
)
def test_where_the_store_is(
    desk: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, variable: str | None, expected: str
) -> None:
    if variable is not None:
        monkeypatch.setenv(places.STORE_VARIABLE, variable)
    assert places.resolve_store(given, Path("/base")) == expected


@pytest.mark.parametrize(
    ("given", "variable", "expected"),
    [
        (None, None, "sqlite:////s/mlflow.db"),
        (None, "", "sqlite:////s/mlflow.db"),
        (None, "http://host:5000", "http://host:5000"),
        ("sqlite:///x/m.db", "http://host:5000", "sqlite:////base/x/m.db"),
        ("sqlite:////abs/m.db", None, "sqlite:////abs/m.db"),
        ("postgresql://host/db", None, "postgresql://host/db"),
    ],
)
def test_where_mlflow_is(
    desk: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, variable: str | None, expected: str
) -> None:
    if variable is not None:
        monkeypatch.setenv(places.TRACKING_VARIABLE, variable)
    assert places.resolve_tracking(given, "/s", Path("/base")) == expected


def test_places_that_cannot_be(desk: Path) -> None:
    with pytest.raises(UsageError, match="is required, as the store s3://b/x cannot hold a SQLite database"):
        places.resolve_tracking(None, "s3://b/x", desk)
    with pytest.raises(UsageError, match="should be a URI such as"):
        places.resolve_tracking("mlruns", "/s", desk)


def test_a_ray_job_needs_absolute_places(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not places.in_ray_job()
    places.check_inputs(["relative.txt"])
    monkeypatch.setenv(places.JOB_VARIABLE, "{}")
    assert places.in_ray_job()
    for given in (None, "relative"):
        with pytest.raises(UsageError, match="temporary copy that Ray deletes; give an absolute path or a URI"):
            places.resolve_store(given, desk)
    assert places.resolve_store("/abs", desk) == "/abs"
    with pytest.raises(UsageError, match="a Ray job needs one, absolute, by the option or MLFLOW_TRACKING_URI"):
        places.resolve_tracking(None, "/s", desk)
    with pytest.raises(UsageError, match="the path of the database has to be absolute"):
        places.resolve_tracking("sqlite:///m.db", "/s", desk)
    assert places.resolve_tracking("sqlite:////m.db", "/s", desk) == "sqlite:////m.db"
    places.check_inputs(["/abs.txt", "s3://bucket/x"])
    with pytest.raises(UsageError, match=r"relative\.txt: in a Ray job"):
        places.check_inputs(["/abs.txt", "relative.txt"])


def test_what_another_command_works_on_is_refused(make: Make) -> None:
    context, log = make(), list[str]()
    settings = context.experiment.settings("ingest")
    name = artifacts.lease_name("small", "ingest", artifacts.identity("ingest", settings, {}))
    with lease(context.store, name), pytest.raises(LeaseHeldError, match=r"ingest-.*\.lease\.json: held by process"):
        run(context, log)
    assert not log
    assert not run(context, log).skipped
    assert not [file for file in context.store.files() if "lease" in file]


def test_what_another_command_has_just_finished_is_not_done_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    context, log = make(), list[str]()

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(places, "lease", lease)
        run(make(), log)
        return lease(*arguments)

    monkeypatch.setattr(places, "lease", meanwhile)
    assert run(context, log).skipped
    assert len(log) == 1


def test_who_lost_the_lease_commits_nothing(make: Make) -> None:
    context, log = make(), list[str]()

    def work(folder: Store) -> Work:
        for file in [file for file in context.store.files() if file.endswith(".lease.json")]:
            context.store.delete(file)  # as somebody would who took it over and is done
        return worker(log)(folder)

    with pytest.raises(LeaseLostError, match="Nothing was committed"):
        context.run_stage("ingest", context.experiment.settings("ingest"), {}, work)
    assert artifacts.records(context.store, "small", "ingest") == []


def test_a_later_record_is_newer_even_if_the_clock_was_set_back(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(artifacts, "now", lambda: "2999-01-01T00:00:00+00:00")
        run(make(), log, {"corpus": "first"}, "tokenize_corpus")
    run(make(), log, {"corpus": "second"}, "tokenize_corpus")
    found = artifacts.records(make().store, "small", "tokenize_corpus")
    assert [record.inputs["corpus"] for record in found] == ["second", "first"]
