"""A search that is killed again and again ends as one that nobody killed: no trial lost, none run twice."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
import tomllib
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from rnnlm import cli, faults
from rnnlm.stages import ingest, tokenize_corpus
from rnnlm.training.names import TRAIN_LOSS, VALID_PERPLEXITY_LANED
from rnnlm.training.tracking import MAX_POINTS

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 300
GONE_S = 30.0
"""Longest time in which all processes of a killed search have to be gone."""
EXPERIMENT = """
task = "text"
data.train = "{folder}/lines.txt"
data.valid_share = 0.1
tokenizer.kind = "char"
[model]
embedding_size = 16
hidden_size = 32
num_layers = 1
[train]
lanes = 8
bptt_length = 16
max_steps = {steps}
validate_every = {every}
[tune]
trials = {trials}
{tune}
[tune.space."optim.lr"]
kind = "log_uniform"
low = 1e-3
high = 1e-1
[tune.space."model.output_dropout"]
kind = "choice"
values = [0.0, 0.1, 0.3]
"""


@dataclass
class Place:
    """A store with tokens, and an experiment."""

    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    gone_s: float = 0.0

    def start(self, crash: str = "", *more: str) -> subprocess.Popen[bytes]:
        ours = ("RAY_", "RNNLM_", "MLFLOW_", "TUNE_", "GLOO_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        environment |= {"RNNLM_TEST": self.mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        if crash:
            environment[faults.VARIABLE] = crash
        command = [sys.executable, "-m", "pipelines.tune", f"{self.folder}/search.toml", "--json"]
        command += ["--store", f"{self.folder}/store", "--cpus-per-worker", "1", *more]
        with (self.folder / "log.txt").open("wb") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def finish(self, *more: str) -> dict[str, Any]:
        """The command, to its end; what it says last."""
        process = self.start("", *more)
        assert process.wait(TIMEOUT_S) == 0, self.log()
        self.wait_until_gone()
        return dict(json.loads(self.log().splitlines()[-1]))

    def processes(self) -> list[psutil.Process]:
        """What carries our mark, and so was started by one of our commands."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("RNNLM_TEST") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def wait_until_gone(self) -> None:
        started = time.monotonic()
        while left := self.processes():
            assert time.monotonic() - started < GONE_S, [process.cmdline() for process in left]
            time.sleep(0.1)
        self.gone_s = max(self.gone_s, time.monotonic() - started)

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    @property
    def search(self) -> Path:
        (found,) = self.folder.glob("store/experiments/search/tune-*/")
        return found

    def ledger(self) -> list[dict[str, Any]]:
        files = list(self.folder.glob("store/experiments/search/tune-*/ledger.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def shown(self) -> dict[str, dict[str, Any]]:
        """The runs of the trials at MLflow, by trial: one each, below the search's one."""
        from mlflow.tracking import MlflowClient

        uri = f"sqlite:///{self.folder}/store/mlflow.db"
        client = MlflowClient(uri, uri)
        runs = client.search_runs([each.experiment_id for each in client.search_experiments()], max_results=1000)
        parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
        assert [parent.info.status for parent in parents] == ["FINISHED"]
        assert max(Counter(run.data.tags["rnnlm.trial"] for run in children).values()) == 1
        assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
        return {
            run.data.tags["rnnlm.trial"]: {
                "run_id": run.info.run_id,
                "status": run.info.status,
                "trial_status": run.data.tags["rnnlm.trial_status"],
                "params": run.data.params,
                **{
                    key: sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, key))
                    for key in (TRAIN_LOSS, VALID_PERPLEXITY_LANED)
                },
            }
            for run in children
        }


def check(place: Place, trials: int) -> list[dict[str, Any]]:
    """Ledger and MLflow say the same, each trial once, each step once."""
    ledger, shown = place.ledger(), place.shown()
    assert len(ledger) == len({row["key"] for row in ledger}) == trials
    assert shown.keys() == {row["key"] for row in ledger}
    for row in ledger:
        run = shown[row["key"]]
        assert run["run_id"] == row["run_id"]
        assert run["trial_status"] == row["status"]
        assert run["status"] == ("FAILED" if row["status"] == "failed" else "FINISHED")
        assert {path: float(value) for path, value in run["params"].items()} == row["settings"]
        steps = [step for step, _ in run[TRAIN_LOSS]]
        assert steps == list(range(1, len(steps) + 1)), "a step is missing, or there twice"
        assert len(steps) == row["steps"] or row["status"] != "finished"
        validated = [step for step, _ in run[VALID_PERPLEXITY_LANED]]
        assert len(validated) == len(set(validated))
    finished = [row for row in ledger if row["status"] == "finished"]
    best = min(finished, key=lambda row: row["metrics"][VALID_PERPLEXITY_LANED])
    found = tomllib.loads((place.search / "best.toml").read_text())
    assert found["optim"]["lr"] == best["settings"]["optim.lr"]
    assert found["model"]["output_dropout"] == best["settings"]["model.output_dropout"]
    return ledger


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens, and a database whose tables are made already, which takes MLflow seconds."""
    from rnnlm.integrations.mlflow_tracking import Tracking

    folder = tmp_path_factory.mktemp("template")
    (folder / "store").mkdir()
    Tracking(f"sqlite:///{folder}/store/mlflow.db")
    (folder / "lines.txt").write_text("".join(f"this is line {n} of {n * n % 97}\n\n" for n in range(300)))
    (folder / "search.toml").write_text(EXPERIMENT.format(folder=folder, steps=4, every=2, trials=1, tune=""))
    for name, stage in (("ingest", ingest.run), ("tokenize_corpus", tokenize_corpus.run)):
        assert cli.main(name, stage, argv=[f"{folder}/search.toml", "--store", f"{folder}/store"]) == 0
    return folder


@pytest.fixture
def place_of(template: Path, tmp_path: Path) -> Iterator[Callable[..., Place]]:
    places: list[Place] = []

    def make(name: str, trials: int, tune: str, steps: int = 300, every: int = 50) -> Place:
        shutil.copytree(template, tmp_path / name)
        text = EXPERIMENT.format(folder=template, steps=steps, every=every, trials=trials, tune=tune)
        (tmp_path / name / "search.toml").write_text(text)
        places.append(Place(tmp_path / name))
        return places[-1]

    yield make
    for place in places:
        for process in place.processes():
            process.kill()


def kill_at_a_random_moment(place: Place, generator: random.Random, *more: str) -> bool:
    """Start it, and kill it some seconds after it has gone on with its trials, or while it starts.

    Returns:
        Whether it was killed, and had not ended before.
    """
    before = place.ledger()
    process = place.start("", *more)
    deadline = time.monotonic() + TIMEOUT_S
    if generator.random() < 0.8:
        while place.ledger() == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(generator.uniform(0.0, 3.0))
    else:
        time.sleep(generator.uniform(2.0, 12.0))
    killed = process.poll() is None
    everything = generator.random() < 0.5
    process.kill()
    for each in place.processes() if everything else ():
        each.kill()
    process.wait()
    place.wait_until_gone()
    return killed


def kill_at_a_point(place: Place, crash: str, *more: str) -> bool:
    process = place.start(crash, *more)
    code = process.wait(TIMEOUT_S)
    assert code in (0, faults.EXIT_CODE), place.log()
    place.wait_until_gone()
    return code == faults.EXIT_CODE


def test_a_search_that_is_killed_ends_as_one_that_was_not(
    place_of: Callable[..., Place], long_form: bool, report: Callable[..., None]
) -> None:
    trials, kills = (12, 10) if long_form else (3, 1)
    started = time.monotonic()
    whole, place = place_of("whole", trials, "grace_share = 1.0"), place_of("killed", trials, "grace_share = 1.0")
    whole.finish()
    expected = check(whole, trials)
    generator = random.Random(7)
    points = ["ledger.write@2", "ledger.written@2", "ledger.write@4", "ledger.written@5"][: 4 if long_form else 1]
    killed = sum(kill_at_a_point(place, point) for point in points)
    for _ in range(kills - len(points)):
        killed += kill_at_a_random_moment(place, generator)

    place.finish()

    found = check(place, trials)
    # A report that was cut off between a checkpoint and the ledger is not made again.
    timed = ("seconds", "run_id", "reports")
    assert [{key: row[key] for key in row if key not in timed} for row in found] == [
        {key: row[key] for key in row if key not in timed} for row in expected
    ]
    assert [row["status"] for row in found] == ["finished"] * trials
    assert (place.search / "best.toml").read_bytes() == (whole.search / "best.toml").read_bytes()
    shown, others = place.shown(), whole.shown()
    for key in others:
        assert shown[key][TRAIN_LOSS] == others[key][TRAIN_LOSS]
    assert killed == kills
    report(
        "search, random sampling",
        kills=killed,
        trials=trials,
        lost=0,
        doubled=0,
        equal=True,
        seconds=round(time.monotonic() - started),
        gone_within_s=round(place.gone_s, 1),
    )


def test_a_search_with_asha_and_optuna_goes_on_where_it_was_killed(
    place_of: Callable[..., Place], long_form: bool, report: Callable[..., None]
) -> None:
    if not long_form:
        pytest.skip("the long form only")
    trials, kills = 6, 3
    started = time.monotonic()
    place = place_of("killed", trials, 'sampler = "optuna"\ngrace_share = 0.3\nreduction_factor = 2')
    generator = random.Random(11)
    killed = 0
    ended: dict[str, dict[str, Any]] = {}
    runs: dict[str, str] = {}
    reports: dict[str, list[Any]] = {}
    for _ in range(kills):
        killed += kill_at_a_random_moment(place, generator)
        now = {row["key"]: row for row in place.ledger()}
        assert {key: now[key] for key in ended} == ended, "a trial that had ended was run again"
        assert {key: now[key]["run_id"] for key in runs} == runs, "a trial went on with another run"
        assert all(now[key]["reports"][: len(rows)] == rows for key, rows in reports.items()), "a rung was forgotten"
        reports = {key: row["reports"] for key, row in now.items()}
        ended = {key: row for key, row in now.items() if row["status"] != "open"}
        runs = {key: row["run_id"] for key, row in now.items() if row["run_id"] is not None}

    place.finish()

    found = {row["key"]: row for row in check(place, trials)}
    assert {key: found[key] for key in ended} == ended
    assert {key: found[key]["run_id"] for key in runs} == runs
    report(
        "search, Optuna and ASHA",
        kills=killed,
        trials=trials,
        lost=0,
        doubled=0,
        statuses=dict(Counter(row["status"] for row in found.values())),
        seconds=round(time.monotonic() - started),
    )


def test_a_disk_that_is_full_uses_up_no_trial(
    place_of: Callable[..., Place],
    mounted: Callable[..., contextlib.AbstractContextManager[Path]],
    long_form: bool,
    report: Callable[..., None],
) -> None:
    if not long_form:
        pytest.skip("the long form only")
    trials, moments = 3, (1, 2)
    started = time.monotonic()
    whole, place = place_of("whole", trials, "grace_share = 1.0"), place_of("full", trials, "grace_share = 1.0")
    store, kept = place.folder / "store", place.folder / "kept"
    store.rename(kept)
    with mounted(store, "-t", "tmpfs", "-o", "size=32m", "tmpfs") as disk:
        shutil.copytree(kept, store, dirs_exist_ok=True)
        for begun in moments:
            process = place.start()
            deadline = time.monotonic() + TIMEOUT_S
            while len(place.ledger()) < begun and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                while filler.write(bytes(4096)):
                    pass
            code = process.wait(TIMEOUT_S)
            (disk / "filler").unlink()
            assert code == 1, place.log()
            error = json.loads(place.log().splitlines()[-1])["error"]
            assert str(disk) in error, error
            assert "No space left on device" in error, error
            assert "make room" in error, error
            assert "Traceback" not in place.log()
            assert {row["status"] for row in place.ledger()} <= {"open", "finished"}
            assert not (place.search / "best.toml").exists()
            place.wait_until_gone()

        place.finish()
        whole.finish()

        found, expected = check(place, trials), check(whole, trials)
        timed = ("seconds", "run_id", "reports")
        assert [{key: row[key] for key in row if key not in timed} for row in found] == [
            {key: row[key] for key in row if key not in timed} for row in expected
        ]
        assert [row["status"] for row in found] == ["finished"] * trials
        assert (place.search / "best.toml").read_bytes() == (whole.search / "best.toml").read_bytes()
    seconds = round(time.monotonic() - started)
    report("search on a full disk", faults=len(moments), trials=trials, lost=0, doubled=0, equal=True, seconds=seconds)


def trial_process(place: Place) -> psutil.Process | None:
    """The process in which a trial trains."""
    for process in place.processes():
        try:
            if " ".join(process.cmdline()).startswith("ray::") and "IDLE" not in " ".join(process.cmdline()):
                return process
        except psutil.Error:
            continue
    return None


def kill_trial(place: Place, number: int) -> None:
    """Kill the process of a trial once the trial has a checkpoint."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        rows = {row["number"]: row for row in place.ledger()}
        process = trial_process(place)
        if number in rows and rows[number]["steps"] and rows[number]["status"] == "open" and process is not None:
            process.kill()
            process.wait(30)
            return
        time.sleep(0.02)
    raise AssertionError(place.log())


def test_a_trial_whose_process_is_killed_goes_on_and_one_that_keeps_dying_is_failed(
    place_of: Callable[..., Place], long_form: bool, report: Callable[..., None]
) -> None:
    if not long_form:
        pytest.skip("the long form only")
    place = place_of("killed", 4, "grace_share = 1.0", steps=MAX_POINTS, every=100)
    process = place.start()
    kill_trial(place, 0)
    for _ in range(2):
        kill_trial(place, 1)
    assert process.wait(TIMEOUT_S) == 0, place.log()
    place.wait_until_gone()

    found = check(place, 4)
    assert [row["status"] for row in found] == ["finished", "failed", "finished", "finished"]
    assert found[0]["steps"] == MAX_POINTS
    assert "killed" in found[1]["error"]
    report("trials killed", kills=3, trials=4, lost=0, doubled=0, reason=found[1]["error"][:120])
