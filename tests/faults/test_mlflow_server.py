"""A real tracking server that is killed again and again while a training logs to it: nothing missing, nothing twice."""

import contextlib
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines import run_all
from rnnlm import cli
from rnnlm.artifacts import read_record
from rnnlm.stages import ingest, register, tokenize_corpus, train
from rnnlm.storage import Store
from rnnlm.training.names import TRAIN_LOSS, VALID_PERPLEXITY_LANED
from rnnlm.training.tracking import MAX_POINTS

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 400
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": partial(cli.main, "train", train.run, None),
    "register": partial(cli.main, "register", register.run, None),
    "run_all": run_all.main,
}
MARK = "RNNLM_TEST"
MAX_STEPS = 200_000
A_FEW_STEPS = 200
CHECKPOINT_EVERY = 1_000
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
max_steps = {max_steps}
max_minutes = {minutes}
validate_every = {every}
keep_checkpoints = 2
"""


def _environment(mark: str) -> dict[str, str]:
    ours = ("RAY_", "RNNLM_", "MLFLOW_", "TUNE_", "GLOO_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {MARK: mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}


@dataclass
class Server:
    """An MLflow server that can be killed and started again."""

    folder: Path
    port: int
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    since: list[tuple[float, bool]] = field(default_factory=list)
    """When it came and went."""
    start_s: float = 0.0
    """How long it took to start."""
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def database(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self.database]
        command += ["--artifacts-destination", f"{self.folder}/artifacts"]
        with (self.folder / "server.txt").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=_environment(self.mark), stdout=log, stderr=log, start_new_session=True
            )
        started = time.monotonic()
        deadline = started + TIMEOUT_S
        while not self._answers():
            assert time.monotonic() < deadline, (self.folder / "server.txt").read_text()
            time.sleep(0.1)
        self.start_s = time.monotonic() - started
        self.since.append((time.time(), True))

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
            return True
        return False

    def kill(self) -> None:
        """All its processes, at once."""
        self.since.append((time.time(), False))
        ours = marked(self.mark)
        for process in ours:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(ours, 10)
        if self.process is not None:
            self.process.wait()

    def was_up(self, moment: float) -> bool:
        return [is_up for when, is_up in self.since if when <= moment][-1]


def marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens."""
    folder = tmp_path_factory.mktemp("template")
    (folder / "lines.txt").write_text("".join(f"this is line {n} of {n * n % 97}\n\n" for n in range(300)))
    write_experiment(folder, folder, 1.0)
    for name, stage in (("ingest", ingest.run), ("tokenize_corpus", tokenize_corpus.run)):
        assert cli.main(name, stage, argv=[f"{folder}/train.toml", "--store", f"{folder}/store"]) == 0
    return folder


def write_experiment(folder: Path, corpus: Path, minutes: float) -> None:
    text = EXPERIMENT.format(folder=corpus, max_steps=MAX_STEPS, minutes=minutes, every=CHECKPOINT_EVERY)
    (folder / "train.toml").write_text(text)


@dataclass
class Place:
    """A store, its server, and commands that use both."""

    folder: Path
    server: Server
    processes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def arguments(self, *more: str) -> list[str]:
        experiment = () if "--flush" in more else (f"{self.folder}/train.toml",)
        return [*experiment, "--json", "--store", f"{self.folder}/store", "--tracking-uri", self.server.uri, *more]

    def start(self, stage: str, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"pipelines.{stage}", *self.arguments(*more)]
        with (self.folder / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=_environment(self.server.mark + "-command"), stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def run(self, stage: str, *more: str) -> int:
        """A command in this process, which spares it the seconds of its start."""
        return COMMANDS[stage](self.arguments(*more))

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    @property
    def training(self) -> Path:
        (found,) = self.folder.glob("store/experiments/train/train-*/")
        return found

    def progress(self) -> tuple[float, int] | None:
        """When and how far the training was when it last said so."""
        for path in self.folder.glob("store/experiments/train/train-*/attempts/*/progress.json"):
            with contextlib.suppress(FileNotFoundError):
                read = json.loads(path.read_text())
                return read["time"], read["step"]
        return None

    def wait_for_step(self, step: int, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while (self.progress() or (0, 0))[1] < step:
            assert process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def complete(self) -> dict[str, Any]:
        """Reads the database: one run, finished, every multiple of the stride of every curve once.

        The training fixes its stride when it first fits its steps to its time; it is the first step with a point.
        """
        from mlflow.tracking import MlflowClient

        client = MlflowClient(self.server.database, self.server.database)
        experiment = client.get_experiment_by_name("train")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id])
        record = read_record(Store(str(self.training)))
        assert record is not None
        last = record.outputs["steps"]
        assert run.info.run_id == record.run_id
        assert run.info.status == "FINISHED"
        assert run.data.params["train.lanes"] == "8"
        assert run.data.tags["rnnlm.stop"] in ("time", "finished")  # the steps are fitted to the time
        assert {each.dataset.name for each in run.inputs.dataset_inputs} == {"tokens"}
        files = {path.name for path in (self.server.folder / "artifacts").rglob("*") if path.is_file()}
        assert files >= {"history.parquet", "curves.png", "experiment.json"}
        stride = min(point.step for point in client.get_metric_history(run.info.run_id, TRAIN_LOSS))
        assert last / stride <= MAX_POINTS
        multiples = list(range(stride, last + 1, stride))
        points = 0
        for key in run.data.metrics:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, key)]
            assert len(steps) == len(set(steps)), (key, "twice")
            points += len(steps)
        for key in (TRAIN_LOSS, "optim/learning_rate", "optim/grad_norm", "throughput/tokens_per_second"):
            steps = sorted(point.step for point in client.get_metric_history(run.info.run_id, key))
            assert [step for step in steps if step % stride == 0] == multiples, key
        steps = sorted(point.step for point in client.get_metric_history(run.info.run_id, VALID_PERPLEXITY_LANED))
        assert set(range(CHECKPOINT_EVERY, last + 1, CHECKPOINT_EVERY)) <= set(steps)
        return {"steps": last, "points": points}


@pytest.fixture
def place(template: Path, database: Path, tmp_path: Path) -> Iterator[Place]:
    shutil.copytree(template / "store", tmp_path / "store")
    (tmp_path / "server").mkdir()
    shutil.copy(database, tmp_path / "server/mlflow.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = Place(tmp_path, Server(tmp_path / "server", port))
    yield made
    made.server.kill()
    for process in made.processes:
        process.kill()
        process.wait()


class Speed:
    """Steps a second, with the server there and without, as the training itself tells its progress."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._seen: list[tuple[float, int]] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._closing.wait(0.2):
            with contextlib.suppress(ValueError):
                seen = self._place.progress()
                if seen is not None and (not self._seen or seen[0] > self._seen[-1][0]):
                    self._seen.append(seen)

    def figures(self) -> dict[str, float]:
        self._closing.set()
        self._thread.join()
        rates: dict[bool, list[float]] = {True: [], False: []}
        for (before, step), (after, later) in zip(self._seen, self._seen[1:], strict=False):
            is_up = {self._place.server.was_up(before), self._place.server.was_up(after)}
            if len(is_up) == 1 and 0.2 < after - before < 60:
                rates[is_up.pop()].append((later - step) / (after - before))
        return {
            "steps_per_s_server_up": round(statistics.mean(rates[True] or [0.0]), 1),
            "steps_per_s_server_away": round(statistics.mean(rates[False] or [0.0]), 1),
            "slowest_half_second_away": round(min(rates[False] or [0.0]), 1),
        }


def test_a_server_that_is_killed_while_a_training_logs_loses_nothing(
    place: Place, template: Path, long_form: bool, report: Callable[..., None]
) -> None:
    kills = 10 if long_form else 1
    started = time.monotonic()
    generator = random.Random(3)
    place.server.start()
    # Long enough for all kills: the server is away while it starts.
    write_experiment(place.folder, template, 0.1 + kills * (1.3 * place.server.start_s + 6) / 60)
    process = place.start("train", "--workers", "0", "--cpus-per-worker", "1")
    place.wait_for_step(A_FEW_STEPS, process)
    speed = Speed(place)
    done = 0
    while done < kills and process.poll() is None:
        time.sleep(generator.uniform(0.5, 6.0))
        place.server.kill()
        done += process.poll() is None
        time.sleep(generator.uniform(0.0, 4.0))
        place.server.start()

    assert process.wait(TIMEOUT_S) == 0, place.log()

    assert done == kills
    assert not list((place.folder / "store/spool").glob("*.json")) or place.run("run_all", "--flush") == 0
    found = place.complete()
    figures = speed.figures()
    report(
        "mlflow server", kills=done, lost=0, doubled=0, seconds=round(time.monotonic() - started), **found, **figures
    )
    assert figures["steps_per_s_server_away"] > 0.5 * figures["steps_per_s_server_up"]


def test_a_server_that_does_not_come_back_gets_everything_later(
    place: Place, template: Path, last_line: Callable[[], dict[str, Any]], report: Callable[..., None]
) -> None:
    from mlflow.tracking import MlflowClient

    write_experiment(place.folder, template, 0.1)
    assert place.run("train", "--workers", "0") == 1
    assert "does not answer" in last_line()["error"]
    place.server.start()
    process = place.start("train", "--workers", "0", "--cpus-per-worker", "1")
    place.wait_for_step(A_FEW_STEPS, process)
    place.server.kill()

    assert process.wait(TIMEOUT_S) == 0, place.log()

    assert str(place.folder / "store/spool") in place.log()
    waiting = len(list((place.folder / "store/spool").glob("*.json")))
    assert waiting
    client = MlflowClient(place.server.database, place.server.database)
    experiment = client.get_experiment_by_name("train")
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["RUNNING"]
    assert place.run("register") == 1
    assert "does not answer" in last_line()["error"]
    assert place.run("run_all", "--flush") == 1
    place.server.start()
    assert place.run("run_all", "--flush") == 0
    found = place.complete()
    report("mlflow server, away at the end", kills=1, lost=0, doubled=0, calls_that_waited=waiting, **found)
