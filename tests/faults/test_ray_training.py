"""A training under real Ray, whose workers, driver and nodes are killed: it ends as one that nobody killed.

The commands are those that people type. A kill is a SIGKILL, at a random moment, or aimed: a worker finds the name of a crash
point in a folder (`rnnlm.faults`), takes it away, and dies there, which proves where it died.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient

from rnnlm import faults

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
NAME = "killed"
WINDOWS = ("checkpoint.files", "checkpoint.commit", "checkpoint.committed", "metrics.send", "metrics.sent")
"""Points inside the writing of a checkpoint or a batch of metrics."""
PATIENCE_S = 240.0
EXPERIMENT = """
name = "killed"
task = "text"
data.train = "{folder}/lines.txt"
data.valid_share = 0.1
tokenizer.kind = "char"
[model]
embedding_size = 16
hidden_size = 32
num_layers = 2
hidden_dropout = 0.2
output_dropout = 0.1
[train]
lanes = 8
bptt_length = 16
max_steps = {steps}
validate_every = {steps}
checkpoint_every_s = 0.5
[optim]
ema_decay = 0.99
"""


class Place:
    """A folder with a corpus, a store, and the commands that work there."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.aim = folder / "aim"
        self.aim.mkdir()
        self.environment = environment | {faults.AIM_VARIABLE: str(self.aim), "PYTHONUNBUFFERED": "1"}
        self.experiment = folder / "killed.toml"
        self.last_log = ""

    def command(self, stage: str, *options: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            f"pipelines.{stage}",
            str(self.experiment),
            "--json",
            "--store",
            f"{self.folder}/store",
            *options,
        ]

    def start(self, stage: str, *options: str) -> "subprocess.Popen[bytes]":
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                self.command(stage, *options),
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def run(self, stage: str, *options: str, timeout_s: float = 900) -> dict[str, Any]:
        done = subprocess.run(
            self.command(stage, *options), cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout_s,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return dict(json.loads(done.stdout.splitlines()[-1]))

    @property
    def training(self) -> Path | None:
        """The folder of the training, once there is one."""
        return next(iter(self.folder.glob(f"store/experiments/{NAME}/train-*")), None)

    def checkpoints(self) -> set[int]:
        if self.training is None:
            return set()
        return {int(path.parent.name[5:]) for path in self.training.glob("checkpoints/step-*/checkpoint.json")}

    def starts(self) -> list[dict[str, Any]]:
        try:
            return list(json.loads((self.training / "starts.json").read_text())) if self.training else []
        except FileNotFoundError:
            return []

    def end(self) -> dict[str, bytes]:
        """The files of the last checkpoint that a resumed training has to have to the last bit."""
        assert self.training is not None
        last = self.training / f"checkpoints/step-{max(self.checkpoints()):09d}"
        return {name: (last / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer", "ema", "carry")}

    def history(self) -> dict[str, list[float]]:
        assert self.training is not None
        return dict(pq.read_table(self.training / "history.parquet").to_pydict())

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Each metric of the training's only run: (step, value), as logged."""
        uri = f"sqlite:///{self.folder}/store/mlflow.db"
        client = MlflowClient(uri, uri)
        experiment = client.get_experiment_by_name(NAME)
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        (run,) = [run for run in runs if run.data.tags["rnnlm.stage"] == "train"]
        assert run.info.status == "FINISHED"
        untimed = [key for key in run.data.metrics if key.startswith(("train/loss", "optim/", "valid/"))]
        return {
            key: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
            for key in untimed
        }


class Kills:
    """Kills processes of a training that is under way, and counts."""

    def __init__(self, place: Place, seed: int) -> None:
        self.place = place
        self.random = random.Random(seed)
        self.by_kind: dict[str, int] = {}
        self.in_window = 0

    @property
    def total(self) -> int:
        return sum(self.by_kind.values())

    def counted(self, kind: str) -> None:
        self.by_kind[kind] = self.by_kind.get(kind, 0) + 1

    def await_progress(self, driver: "subprocess.Popen[bytes]") -> None:
        """Until the training that runs now has written a checkpoint of its own."""
        known, starts = self.place.checkpoints(), len(self.place.starts())
        wait(lambda: len(self.place.starts()) >= max(starts, 1) and bool(self.place.checkpoints() - known), driver)

    def aimed(self, driver: "subprocess.Popen[bytes]") -> None:
        """Worker 0 dies inside a window of writing."""
        target = self.place.aim / WINDOWS[self.in_window % len(WINDOWS)]
        target.touch()
        wait(lambda: not target.exists(), driver)
        self.in_window += 1
        self.counted("worker")

    def random_worker(self, driver: "subprocess.Popen[bytes]") -> None:
        time.sleep(self.random.uniform(0, 0.8))
        workers = [process for process in psutil.Process(driver.pid).children(recursive=True) if is_worker(process)]
        assert workers
        self.random.choice(workers).kill()
        self.counted("worker")

    def driver(self, driver: "subprocess.Popen[bytes]") -> None:
        """The command dies; Ray's processes that it started have to go by themselves.

        Two of them, which do no work, first try to tell the dead of the death, for a minute.
        """
        time.sleep(self.random.uniform(0, 0.8))
        family = [process for process in psutil.Process(driver.pid).children(recursive=True) if not is_agent(process)]
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        _, left = psutil.wait_procs(family, 30)
        assert not left, [process.cmdline() for process in left]
        self.counted("driver")


def is_worker(process: psutil.Process) -> bool:
    return "RayTrainWorker" in said(process)


def is_agent(process: psutil.Process) -> bool:
    return "ray::DashboardAgent" in said(process) or "ray::RuntimeEnvAgent" in said(process)


def said(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def wait(
    condition: Callable[[], bool], driver: "subprocess.Popen[bytes] | None" = None, seconds: float = PATIENCE_S
) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited for too long"
        assert driver is None or driver.poll() is None, f"the command has ended with {driver.poll()}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def steps(long_form: bool) -> int:
    return 20_000 if long_form else 1_500


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, steps: int) -> Path:
    """A store whose corpus is ingested and tokenized, and whose database has its tables."""
    folder = tmp_path_factory.mktemp("template") / "place"
    folder.mkdir()
    (folder / "lines.txt").write_text("".join(f"{10 + number} bottles stand on the wall\n\n" for number in range(600)))
    (folder / "killed.toml").write_text(EXPERIMENT.format(folder=folder, steps=steps))
    place = Place(folder, clean())
    place.run("ingest")
    place.run("tokenize_corpus")
    place.aim.rmdir()
    return folder


def clean() -> dict[str, str]:
    """The environment of a fresh shell."""
    ours = ("RAY_", "RNNLM_", "MLFLOW_", "TUNE_", "GLOO_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def make_place(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Place]:
    def make(**variables: str) -> Place:
        folder = tmp_path_factory.mktemp("training") / "place"
        shutil.copytree(template, folder)
        return Place(folder, clean() | variables)

    return make


@pytest.fixture(scope="module")
def whole(make_place: Callable[..., Place]) -> tuple[Place, float]:
    """The training with two workers that nobody killed, and its seconds."""
    place, started = make_place(), time.monotonic()
    place.run("train", "--workers", "2")
    return place, time.monotonic() - started


@pytest.mark.timeout(3000)
def test_workers_and_drivers_are_killed(
    make_place: Callable[..., Place], whole: tuple[Place, float], long_form: bool, report: Callable[..., None]
) -> None:
    untouched, whole_s = whole
    place, started = make_place(), time.monotonic()
    kills = Kills(place, seed=0)
    plan = ["aimed", "random", "aimed", "random", "driver"] if long_form else ["aimed", "driver"]
    for number in range(6 if long_form else 1):
        driver = place.start("train", "--workers", "2")
        for kind in plan if number < 5 else ["driver"] * 5:
            kills.await_progress(driver)
            if kind == "driver":
                kills.driver(driver)
                driver = place.start("train", "--workers", "2")
            else:
                (kills.aimed if kind == "aimed" else kills.random_worker)(driver)
        kills.await_progress(driver)
        if number < 5 and long_form:
            driver.send_signal(signal.SIGTERM)
            assert driver.wait(60) == 143
    assert driver.wait(PATIENCE_S) == 0, (place.folder / "log.txt").read_text()[-3000:]

    assert place.end() == untouched.end()
    history, expected = place.history(), untouched.history()
    assert {key: history[key] for key in history if key != "seconds"} == {
        key: expected[key] for key in expected if key != "seconds"
    }
    assert place.curves() == untouched.curves()
    again = sum(start["again"] for start in place.starts())
    assert again > 0
    report(
        "training killed", kills=kills.by_kind, in_window=kills.in_window, restarts=len(place.starts()) - 1, steps_again=again,
        steps=len(history["step"]), seconds=round(time.monotonic() - started), seconds_untouched=round(whole_s), equal=True,
    )  # fmt: skip
