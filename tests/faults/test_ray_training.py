"""A training under real Ray, whose workers, driver and nodes are killed: it ends as one that nobody killed.

The commands are those that people type. A kill is a SIGKILL, at a random moment, or aimed: a worker finds the name of a crash
point in a folder (`rnnlm.faults`), takes it away, and dies there, which proves where it died.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
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
GONE_S = 90.0
"""Longest time in which all processes of a killed command have to be gone."""
KILLED_S = 60.0
"""How long an undisturbed training takes: longer than one that is killed 30 times has between its kills."""
ELASTIC_S = 300.0
"""Longer than three nodes need to go and to come back."""
WIDE = ("model.hidden_size=128", "train.lanes=64", "train.bptt_length=64")
"""A step that takes some ten milliseconds: what rounds differently after a change of workers grows with every step."""
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
        self.commands: list[subprocess.Popen[bytes]] = []

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
            started = subprocess.Popen(
                self.command(stage, *options),
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.commands.append(started)
        return started

    def end_all(self) -> None:
        """End what a test that failed has left."""
        for command in self.commands:
            if command.poll() is None:
                command.send_signal(signal.SIGTERM)
                command.wait(60)

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
        return next(iter(self.folder.glob(f"store/experiments/{NAME}/train-*/")), None)

    def checkpoints(self) -> set[int]:
        if self.training is None:
            return set()
        return {int(path.parent.name[5:]) for path in self.training.glob("checkpoints/step-*/checkpoint.json")}

    def starts(self) -> list[dict[str, Any]]:
        try:
            return list(json.loads((self.training / "starts.json").read_text())) if self.training else []
        except FileNotFoundError:
            return []

    def result(self) -> dict[str, bytes]:
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
        self.restart_s: dict[str, list[float]] = {}
        """From a kill, or the new command after one, until the training goes on."""
        self._last: tuple[str, int, float] | None = None

    @property
    def total(self) -> int:
        return sum(self.by_kind.values())

    def counted(self, kind: str) -> None:
        self.by_kind[kind] = self.by_kind.get(kind, 0) + 1
        self._last = kind, len(self.place.starts()), time.monotonic()

    def await_progress(self, driver: "subprocess.Popen[bytes]") -> None:
        """Until the training that runs now has written a checkpoint of its own."""
        kind, starts, killed = self._last or ("", 0, 0.0)
        wait(lambda: len(self.place.starts()) > starts, driver)
        if self._last:
            self.restart_s.setdefault(kind, []).append(time.monotonic() - killed)
            self._last = None
        known = self.place.checkpoints()
        wait(lambda: bool(self.place.checkpoints() - known), driver)

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
        _, left = psutil.wait_procs(family, GONE_S)
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


def lines(count: int) -> str:
    """Sentences of a small grammar: more than a small model can learn by heart, so that a long training of it settles."""
    some = random.Random(0)
    things, places = ("bottles", "cups", "old books", "red apples"), ("wall", "table", "roof of the house", "shelf")
    return "".join(
        f"{some.randrange(10, 1000)} {some.choice(things)} {some.choice(('stand', 'lie'))} on the {some.choice(places)}\n\n"
        for _ in range(count)
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose corpus is ingested and tokenized, and whose database has its tables."""
    folder = tmp_path_factory.mktemp("template") / "place"
    folder.mkdir()
    (folder / "lines.txt").write_text(lines(10_000))
    (folder / "killed.toml").write_text(EXPERIMENT.format(folder=folder, steps=1))
    place = Place(folder, clean())
    place.run("ingest")
    place.run("tokenize_corpus")
    place.aim.rmdir()
    return folder


def clean() -> dict[str, str]:
    """The environment of a fresh shell."""
    ours = ("RAY_", "RNNLM_", "MLFLOW_", "TUNE_", "GLOO_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def make_place(template: Path, tmp_path: Path) -> Iterator[Callable[..., Place]]:
    """A new place for a training of so many steps."""
    places = []

    def make(name: str, steps: int, **variables: str) -> Place:
        shutil.copytree(template, tmp_path / name)
        place = Place(tmp_path / name, clean() | variables)
        place.experiment.write_text(EXPERIMENT.format(folder=template, steps=steps))
        places.append(place)
        return place

    yield make
    for place in places:
        place.end_all()


def steps_of(make_place: Callable[..., Place], seconds: float, *settings: str, tried: int = 2_000) -> int:
    """The steps that two workers take in so many seconds on this machine."""
    place = make_place("measured", tried)
    place.run("train", *settings, "--workers", "2")
    return round(tried * seconds / sum(place.history()["seconds"]))


@pytest.mark.timeout(3000)
def test_workers_and_drivers_are_killed(
    make_place: Callable[..., Place], long_form: bool, report: Callable[..., None]
) -> None:
    steps = steps_of(make_place, KILLED_S) if long_form else 1_500
    untouched = make_place("untouched", steps)
    untouched.run("train", "--workers", "2")
    place, started = make_place("killed", steps), time.monotonic()
    kills = Kills(place, seed=0)
    plan = ["aimed", "random", "aimed", "aimed", "driver"] if long_form else ["aimed", "driver"]
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

    assert place.result() == untouched.result()
    history, expected = place.history(), untouched.history()
    assert {key: history[key] for key in history if key != "seconds"} == {
        key: expected[key] for key in expected if key != "seconds"
    }
    assert place.curves() == untouched.curves()
    again = sum(start["again"] for start in place.starts())
    assert again > 0
    report(
        "training killed",
        kills=kills.by_kind,
        in_window=kills.in_window,
        restarts=len(place.starts()) - 1,
        restart_s={kind: round(median(values), 1) for kind, values in kills.restart_s.items()},
        steps_again=again,
        steps=steps,
        seconds=round(time.monotonic() - started),
        equal=True,
    )


class Cluster:
    """A Ray of a head and a worker node on this machine, one core each; the worker node can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ports = ("RAY_PORT", "RAY_DASHBOARD_PORT", "RAY_AGENT_PORT")
        free = {name: str(port) for name, port in zip(ports, free_ports(len(ports)), strict=True)}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = clean() | free | {"PYTHON": sys.executable, "PATH": path}
        self.script("two_nodes.sh")
        lines = (folder / "environment").read_text("utf-8").splitlines()
        self.variables = dict(line.removeprefix("export ").split("=", 1) for line in lines)

    def script(self, name: str, *arguments: str) -> None:
        # Not a pipe: the cluster would keep it open.
        with self.folder.with_suffix(".log").open("a") as log:
            command = ["bash", str(ROOT / "cluster" / name), str(self.folder), *arguments]
            done = subprocess.run(
                command, env=self._environment, stdout=log, stderr=subprocess.STDOUT, timeout=PATIENCE_S, check=False
            )
        assert done.returncode == 0, self.folder.with_suffix(".log").read_text()

    def kill_worker_node(self) -> None:
        """SIGKILL its raylet; everything that runs on that node goes with it."""
        mark = f"{(self.folder / 'temporary').read_text().strip()}-2"
        (raylet,) = [
            process for process in psutil.process_iter() if process.name() == "raylet" and mark in said(process)
        ]
        raylet.kill()
        raylet.wait(10)


def free_ports(count: int) -> list[int]:
    """Ports that are free, each with two free ones behind it, as Ray's agents take more than one."""
    found: list[int] = []
    while len(found) < count:
        taken = []
        try:
            with socket.socket() as first:
                first.bind(("127.0.0.1", 0))
                port = int(first.getsockname()[1])
                for number in (1, 2):
                    taken.append(socket.socket())
                    taken[-1].bind(("127.0.0.1", port + number))
                found.append(port)
        except (OSError, OverflowError):
            continue
        finally:
            for each in taken:
                each.close()
    return found


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    running = Cluster(tmp_path / "cluster")
    try:
        yield running
    finally:
        running.script("stop.sh")


@pytest.mark.timeout(3000)
def test_a_node_is_killed_and_comes_back(
    make_place: Callable[..., Place],
    cluster: Cluster,
    long_form: bool,
    report: Callable[..., None],
) -> None:
    """An elastic training goes on with one worker, then with two again: the same samples in the same order."""
    if not long_form:
        pytest.skip("takes minutes: make faults")
    steps = steps_of(make_place, ELASTIC_S, *WIDE, tried=400)
    untouched = make_place("untouched", steps)
    untouched.run("train", *WIDE, "--workers", "2")
    place, started = make_place("killed", steps, **cluster.variables), time.monotonic()
    driver = place.start("train", *WIDE, "--workers", "1:2")
    wait(lambda: bool(place.checkpoints()), driver)
    sizes = [place.starts()[-1]["workers"]]
    shrunk, grown = [], []
    for size in (1, 2) * 3:
        changed = time.monotonic()
        if size == 1:
            cluster.kill_worker_node()
        else:
            cluster.script("two_nodes.sh", "worker")
        wait(lambda size=size: place.starts()[-1]["workers"] == size, driver)  # type: ignore[misc]
        (shrunk if size == 1 else grown).append(round(time.monotonic() - changed, 1))
        sizes.append(size)
        known = place.checkpoints()
        wait(lambda known=known: bool(place.checkpoints() - known), driver)  # type: ignore[misc]
    assert driver.wait(900) == 0, (place.folder / "log.txt").read_text()[-3000:]

    history, expected = place.history(), untouched.history()
    for key in ("step", "tokens", "learning_rate"):
        assert history[key] == expected[key]
    # Sums in another order differ in their last digits, and thousands of steps make much of that: only what follows a change at
    # once is compared step by step.
    changed = next(start["step"] for start in place.starts() if start["workers"] == 1)
    apart = max(
        abs(mine - theirs) / theirs
        for mine, theirs in list(zip(history["loss_nats"], expected["loss_nats"], strict=True))[: changed + 50]
    )
    curves, expected_curves = place.curves(), untouched.curves()
    assert {key: [step for step, _ in curve] for key, curve in curves.items()} == {
        key: [step for step, _ in curve] for key, curve in expected_curves.items()
    }
    ((_, valid),) = curves["valid/perplexity_laned"]
    ((_, wanted),) = expected_curves["valid/perplexity_laned"]
    report(
        "nodes killed", kills={"raylet": 3}, steps=steps, workers=sizes, shrunk_s=shrunk, grown_s=grown, valid=valid,
        valid_untouched=wanted, largest_difference_in_50_steps=apart, steps_again=sum(start["again"] for start in place.starts()),
        seconds=round(time.monotonic() - started),
    )  # fmt: skip
    assert abs(valid - wanted) <= 1e-3 * wanted
    assert apart <= 1e-5
