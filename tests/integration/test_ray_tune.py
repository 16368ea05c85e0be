import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.tune

from rnnlm.errors import ConfigError, UnreachableError
from rnnlm.integrations import tune_trial
from rnnlm.integrations.mlflow_tracking import Tracking
from rnnlm.integrations.ray_cluster import Placement, Session
from rnnlm.integrations.ray_tune import SearchResult, search
from rnnlm.integrations.tune_trial import SearchJob, run_trial, variant
from rnnlm.integrations.tune_watcher import Watcher
from rnnlm.storage import Store
from rnnlm.training.names import TRAIN_LOSS, VALID_PERPLEXITY_LANED
from rnnlm.tuning import space as spaces
from rnnlm.tuning.ledger import Ledger

pytestmark = pytest.mark.integration

LR = {"kind": "log_uniform", "low": 1e-3, "high": 1e-1}


def job_of(
    corpus: Any, folder: Path, tune: dict[str, Any], placement: Placement | None = None, **more: Any
) -> SearchJob:
    tune = {"trials": 3, "space": {"optim.lr": LR}, **tune}
    steps = tune.get("max_steps", 40)
    experiment = corpus.experiment("search", tune=tune, train={"max_steps": 40, "validate_every": steps // 6})
    return SearchJob(experiment, 20, corpus.tokens, Store(str(folder)), placement or Placement(0, 1), **more)


def statuses(result: SearchResult) -> list[str]:
    return [trial["status"] for trial in result.trials]


def test_trials_are_runs_below_the_search(
    ray_session: Session, corpus: Any, tracking: Tracking, tmp_path: Path
) -> None:
    parent = tracking.start_run("search", "tune", "tune")
    # A trial with too many lanes for the data fails; the others go on.
    space = {"optim.lr": LR, "train.lanes": {"kind": "choice", "values": [2, 100_000]}}
    job = job_of(
        corpus,
        tmp_path,
        {"trials": 5, "space": space, "grace_share": 0.2, "max_steps": 30},
        tracking_uri=tracking.uri,
        artifact_root=tracking.artifact_root,
        parent_run_id=parent,
    )
    seen: list[tuple[int, int]] = []

    result = search(job, ray_session, tracking=tracking, on_progress=lambda done, total, _: seen.append((done, total)))

    assert len(result.trials) == 5
    assert not result.stopped
    assert seen[-1][1] == 5
    assert set(statuses(result)) <= {"finished", "stopped", "failed"}
    for trial in result.trials:
        run = tracking.client.get_run(trial["run_id"])
        assert run.data.tags["mlflow.parentRunId"] == parent
        assert run.data.tags["rnnlm.trial_status"] == trial["status"]
        assert float(run.data.params["optim.lr"]) == trial["settings"]["optim.lr"]
        if trial["settings"]["train.lanes"] == 2:
            assert trial["status"] in ("finished", "stopped")
            assert run.info.status == "FINISHED"
            assert trial["steps"] == (30 if trial["status"] == "finished" else max(6, trial["steps"]))
            assert tracking.logged_steps(trial["run_id"], TRAIN_LOSS) >= set(range(1, trial["steps"] + 1))
            assert math.isfinite(trial["metrics"][VALID_PERPLEXITY_LANED])
        else:
            assert (trial["status"], run.info.status) == ("failed", "FAILED")
            assert "lanes" in trial["error"]
    assert {"finished", "failed"} <= set(statuses(result))
    finished = [trial for trial in result.trials if trial["status"] == "finished"]
    assert result.best is not None
    assert result.best.metrics[VALID_PERPLEXITY_LANED] == min(t["metrics"][VALID_PERPLEXITY_LANED] for t in finished)
    kept = {path.parts[-4] for path in tmp_path.glob("trials/*/checkpoints/*/checkpoint.json")}
    assert kept == {result.best.key}
    assert not list(tmp_path.rglob("*.pkl"))


def test_a_search_goes_on_where_it_was_stopped(ray_session: Session, corpus: Any, tmp_path: Path) -> None:
    job = job_of(corpus, tmp_path, {"trials": 3, "sampler": "optuna", "max_steps": 1500, "grace_share": 1.0})
    ledger_file = tmp_path / "ledger.jsonl"

    def second_trial_runs() -> bool:
        return any((path / "checkpoints").exists() for path in tmp_path.glob("trials/*"))

    first = search(job, ray_session, stop_requested=second_trial_runs)

    assert first.stopped
    assert ledger_file.exists()
    open_keys = {trial.key for trial in Ledger(job.folder).trials if trial.is_open}
    assert open_keys

    second = search(job, ray_session)

    assert not second.stopped
    assert statuses(second) == ["finished"] * 3
    assert open_keys <= {trial["key"] for trial in second.trials}
    assert [trial["steps"] for trial in second.trials] == [1500] * 3
    assert second.best is not None

    third = search(job, ray_session)

    assert third.trials == second.trials
    assert third.seconds < 2


def test_a_disk_that_takes_no_checkpoint_ends_the_search_and_uses_up_no_trial(
    ray_session: Session, corpus: Any, tmp_path: Path
) -> None:
    whole = search(job_of(corpus, tmp_path / "whole", {"grace_share": 1.0}), ray_session)
    first, *others = [trial["key"] for trial in whole.trials]
    # A file in the place of a folder: the disk refuses what is to be written there.
    refusing = [tmp_path / "full" / "trials" / key / "checkpoints" for key in others]
    for path in refusing:
        path.parent.mkdir(parents=True)
        path.touch()
    job = job_of(corpus, tmp_path / "full", {"grace_share": 1.0})

    with pytest.raises(UnreachableError, match=f"{others[0]}.*cannot be written.*make room.* the same command goes on"):
        search(job, ray_session)

    assert {trial.key: trial.status for trial in Ledger(job.folder).trials} == {first: "finished", others[0]: "open"}
    for path in refusing:
        path.unlink()

    again = search(job, ray_session)

    timed = ("seconds", "reports")
    assert [{key: row[key] for key in row if key not in timed} for row in again.trials] == [
        {key: row[key] for key in row if key not in timed} for row in whole.trials
    ]
    assert again.best is not None
    assert again.best.key == (whole.best and whole.best.key)


AGAIN = "the workers ended 3 times in a row after step 6, with no new checkpoint: "


@pytest.mark.parametrize(
    ("kind", "error", "expected"),
    [
        ("UnwrittenCheckpoint", "/x: the checkpoint cannot be written: No space left on device", "trouble"),
        ("UnreachableError", "store s3://x: does not answer", "trouble"),
        ("RnnlmError", f"{AGAIN}UnreachableError: store s3://x: does not answer", "trouble"),
        ("RnnlmError", f"{AGAIN}they were killed or crashed", "failure"),
        ("Divergence", "step 7: the loss is not finite", "failure"),
    ],
)
def test_an_error_is_a_trials_own_unless_others_would_meet_it(
    corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, error: str, expected: str
) -> None:
    job = job_of(corpus, tmp_path, {})
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(ray.tune, "report", told.append)
    monkeypatch.setattr(tune_trial, "_train", lambda *_: {"error": error, "error_kind": kind})

    run_trial(config_of(job), job=job, started_here=True)

    assert [result.keys() & {"trouble", "failure"} for result in told] == [{expected}]
    assert told[0][expected] == error


def test_a_trial_waits_for_mlflow_but_not_for_a_store(
    corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(corpus, tmp_path, {})
    answers = [UnreachableError("MLflow: does not answer"), UnreachableError("MLflow: disk is full")]
    asked: list[dict[str, Any]] = []
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(ray.tune, "report", told.append)
    monkeypatch.setattr(tune_trial, "_RETRY_S", 0.0)

    def ask(*_: Any) -> None:
        asked.append({})
        if len(asked) == len(answers):
            monkeypatch.setattr(Store, "write_bytes", refuse)
        raise answers[len(asked) - 1]

    monkeypatch.setattr(tune_trial, "_child_run", ask)

    run_trial(config_of(job), job=job, started_here=True)

    assert len(asked) == 2
    assert [result["trouble"] for result in told] == [FULL]


@pytest.mark.parametrize("hook", ["on_trial_complete", "on_trial_error"])
def test_a_trial_that_fails_while_the_store_does_stays_open(
    corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    job = job_of(corpus, tmp_path, {})
    watcher = Watcher(job, Ledger(job.folder), None)
    error = OSError("its file is gone")
    trial = SimpleNamespace(
        trial_id="a", config=config_of(job), last_result={"failure": str(error)}, get_error=lambda: error
    )
    watcher.on_trial_start(trial)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_bytes", refuse)

        getattr(watcher, hook)(trial)
        watcher.ask_to_stop()

    assert watcher.trouble == FULL
    assert watcher.stopper.stop_all()
    assert [(each.status, each.error) for each in Ledger(job.folder).trials] == [("open", None)]
    getattr(watcher, hook)(trial)
    assert [(each.status, each.error) for each in Ledger(job.folder).trials] == [("failed", str(error))]


FULL = "store /x: No space left on device"


def refuse(*_: Any) -> None:
    raise UnreachableError(FULL)


def config_of(job: SearchJob) -> dict[str, Any]:
    """Of a trial, as Tune has it."""
    return {"settings": spaces.sample(job.experiment.tune.space, job.experiment.seed, 0)}


def test_a_trial_may_have_workers_of_its_own(ray_session: Session, corpus: Any, tmp_path: Path) -> None:
    result = search(job_of(corpus, tmp_path, {"trials": 1}, Placement(1, 1)), ray_session)

    assert statuses(result) == ["finished"]
    assert result.trials[0]["steps"] == 40
    assert result.best is not None


def test_a_space_that_does_not_fit_is_refused_before_anything_starts(
    ray_session: Session, corpus: Any, tmp_path: Path
) -> None:
    space = {"optim.learning_rate": LR}

    with pytest.raises(ConfigError, match=r"optim\.learning_rate: unknown key"):
        search(job_of(corpus, tmp_path, {"space": space}), ray_session)


def test_a_trial_differs_from_its_experiment_in_its_settings_and_steps_alone(corpus: Any) -> None:
    experiment = corpus.experiment(tune={"trials": 1, "space": {"optim.lr": LR}, "max_steps": 7})

    changed = variant(experiment, {"optim.lr": 0.05})

    assert changed.optim.lr == 0.05
    assert changed.train.max_steps == 7
    assert changed.model == experiment.model
    assert changed.data == experiment.data
