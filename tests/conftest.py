"""What tests of commands share: a folder without the user's settings, a small experiment, and MLflow in memory."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest

from rnnlm import cli
from rnnlm.stages import context as places

_TEST_RUN = os.getpid()
_EXIT = os._exit


def _exit_of_others(code: int) -> NoReturn:
    """Ends a process that a test has forked, but not the test run, which would look like one that had passed."""
    if os.getpid() == _TEST_RUN:
        raise AssertionError(f"a test would have ended the test run with exit code {code}")
    _EXIT(code)


os._exit = _exit_of_others

JSON_KEYS = ["stage", "exit_code", "error", "skipped", "run_id", "metrics", "model_uri", "artifacts", "seconds"]
PLACES = (
    places.STORE_VARIABLE,
    places.TRACKING_VARIABLE,
    places.ADDRESS_VARIABLE,
    places.JOB_VARIABLE,
    "RNNLM_CACHE",
)
SMALL = """
task = "text"
data.train = "corpus.txt"
tokenizer.kind = "char"
[model]
embedding_size = 8
hidden_size = 8
num_layers = 1
[train]
lanes = 2
bptt_length = 8
max_steps = 4
validate_every = 2
"""


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite database with MLflow's tables, which take seconds to make: tests copy it."""
    from rnnlm.integrations.mlflow_tracking import Tracking

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    Tracking(f"sqlite:///{path}")
    return path


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a command, with a small experiment and its corpus; no variable says where things are."""
    for name in (*PLACES, *cli.QUIET):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("RNNLM_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "desk"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "small.toml").write_text(SMALL)
    (folder / "corpus.txt").write_text("".join(f"line {n} of the corpus\n\n" for n in range(200)))
    return folder


@pytest.fixture
def last_line(capfd: pytest.CaptureFixture[str]) -> Callable[[], dict[str, Any]]:
    """The JSON object at the end of what a command has said; it has all keys, in their order."""

    def read() -> dict[str, Any]:
        result = json.loads(capfd.readouterr().out.splitlines()[-1])
        assert list(result) == JSON_KEYS
        return dict(result)

    return read


class MemoryTracking:
    """MLflow in memory: what `rnnlm.integrations.mlflow_tracking.Tracking` is to the stages."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}

    def start_run(self, experiment: str, name: str, stage: str, **rest: Any) -> str:
        identity = dict(rest.pop("identity", None) or {})
        found = self.find_run(experiment, identity) if identity else None
        if found is not None:
            return found
        run_id = f"run{len(self.runs)}"
        tags = dict(rest.pop("tags", None) or {}) | identity
        self.runs[run_id] = {"experiment": experiment, "name": name, "stage": stage, "status": "RUNNING", **rest}
        self.runs[run_id] |= {"tags": tags, "metrics": {}, "artifacts": []}
        return run_id

    def flush(self) -> int:
        return 0

    def reopen_run(self, run_id: str) -> None:
        self.runs[run_id]["status"] = "RUNNING"

    def has_run(self, run_id: str) -> bool:
        return run_id in self.runs

    @contextlib.contextmanager
    def closing(self, run_id: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.runs[run_id]["status"] = "FAILED" if isinstance(error, Exception) else "KILLED"
            raise
        self.runs[run_id]["status"] = "FINISHED"

    def run_status(self, run_id: str) -> str:
        return str(self.runs[run_id]["status"])

    def end_run(self, run_id: str, status: str = "FINISHED") -> None:
        self.runs[run_id]["status"] = status

    def log_once(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        self.runs[run_id]["metrics"] = {**metrics, **self.runs[run_id]["metrics"]}

    def find_run(self, experiment: str, tags: Mapping[str, str]) -> str | None:
        for run_id, run in self.runs.items():
            if run.get("experiment") == experiment and tags.items() <= run["tags"].items():
                return run_id
        return None

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        self.runs[run_id]["metrics"].update(metrics)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        self.runs[run_id]["tags"].update(tags)

    def log_artifact(self, run_id: str, path: Path, folder: str | None = None) -> None:
        assert path.is_file()
        self.runs[run_id]["artifacts"].append(f"{folder}/{path.name}" if folder else path.name)

    def log_json(self, run_id: str, value: Mapping[str, Any], name: str) -> None:
        json.dumps(value)
        self.runs[run_id]["artifacts"].append(name)

    def log_table(self, run_id: str, columns: Mapping[str, Any], name: str) -> None:
        assert len({len(column) for column in columns.values()}) == 1
        self.runs[run_id]["artifacts"].append(name)


@pytest.fixture
def memory_tracking() -> MemoryTracking:
    """MLflow in memory."""
    return MemoryTracking()
