"""What a stage refuses in a Ray job; `test_two_nodes.py` submits one for real."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

from pipelines import generate
from rnnlm import cli
from rnnlm.stages import ingest
from rnnlm.stages.context import JOB_VARIABLE

pytestmark = pytest.mark.integration

STORE = "--store"
TRACKING = "--tracking-uri"
ABSOLUTE = {STORE: "/somewhere/store", TRACKING: "http://127.0.0.1:9"}


@pytest.fixture(autouse=True)
def in_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")
    monkeypatch.delenv("RNNLM_STORE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("rows.txt").write_text("one\n\ntwo\n", "utf-8")
    Path("words.toml").write_text('task = "text"\ndata.train = "rows.txt"\n', "utf-8")


def words(options: dict[str, str]) -> int:
    return cli.main("ingest", ingest.run, argv=["words.toml", "--json", *_flat(options)])


def rows(model: str, output: str) -> Callable[[dict[str, str]], int]:
    given = ["--model", model, "--input", f"{Path.cwd()}/rows.txt", "--output", output, "--json"]
    return lambda options: generate.main([*given, *_flat(options)])


def _flat(options: dict[str, str]) -> list[str]:
    return [word for pair in options.items() for word in pair]


def test_ray_marks_its_jobs_as_expected() -> None:
    assert JOB_VARIABLE == RAY_JOB_CONFIG_JSON_ENV_VAR


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "--store store: in a Ray job the working directory is a temporary copy"),
        ({STORE: "here"}, "--store here: in a Ray job"),
        ({STORE: "/somewhere"}, "--tracking-uri: a Ray job needs one, absolute, by the option or MLFLOW_TRACKING_URI"),
        ({STORE: "/somewhere", TRACKING: "sqlite:///mlflow.db"}, "the path of the database has to be absolute"),
    ],
)
def test_relative_places_are_refused(options: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words(options) == 2

    line: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said in line["error"]
    assert not Path("store").exists()


def test_relative_inputs_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ABSOLUTE | {STORE: str(tmp_path / "store")}

    assert words(options) == 2

    assert "rows.txt: in a Ray job the working directory is a temporary copy" in capfd.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(("model", "output"), [("models:/m@champion", "relative"), ("package", "/somewhere/out")])
def test_generate_refuses_relative_paths(model: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert rows(model, output)(ABSOLUTE) == 2

    assert "give absolute paths or URIs" in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
