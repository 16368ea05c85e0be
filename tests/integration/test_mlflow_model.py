"""A registered model in real MLflow: versions, aliases, and other people's processes."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import torch
import uvicorn
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, RESOURCE_DOES_NOT_EXIST

from rnnlm.decoding.config import DecodeConfig
from rnnlm.decoding.generator import Generator
from rnnlm.errors import RnnlmError, UsageError
from rnnlm.integrations.mlflow_registry import Registry, Version, resolve
from rnnlm.integrations.mlflow_tracking import Tracking
from rnnlm.models.build import build_model
from rnnlm.models.config import Seq2SeqConfig
from rnnlm.package import package_digest, verify_golden
from rnnlm.text.tokenizer import Tokenizer

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::UserWarning")]

TEXTS = ["five swans cross the lake", "we painted the old gate green", "ink dries on the page"]
SOURCES = ["the lake", "we painted ink", ""]
OUTSIDER = """
import json, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in (getattr(finder, "__module__", "") or "")]
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ray", "datasets", "optuna", "rich", "sacrebleu", "rouge_score", "tomli_w", "psutil"}:
            raise ModuleNotFoundError(f"absent: {name}", name=name)
sys.meta_path.insert(0, Absent())
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/toy@champion")
import rnnlm
assert "/code/rnnlm/" in rnnlm.__file__, rnnlm.__file__
sources = json.loads(sys.argv[2])
rows = model.predict(sources, params={"beam_size": 5})
table = model.predict(pandas.DataFrame({"source": sources}), params={"method": "sample", "seed": 3})
problems = []
for wrong, params in (([None], None), (["a"], {"beam_size": 0}), (["a"], {"temperature": 1.0, "beam_size": 2})):
    try:
        model.predict(wrong, params=params)
    except Exception as error:
        problems.append(str(error))
print(json.dumps([rows["output"].tolist(), rows["score"].isna().tolist(), table["output"].tolist(), problems]))
"""


def make(seed: int = 0) -> Generator:
    tokenizer = Tokenizer.train(TEXTS, kind="bpe", vocab_size=300, min_frequency=1)
    config = Seq2SeqConfig(embedding_size=8, hidden_size=6)
    torch.manual_seed(seed)
    model = build_model(config, tokenizer.vocab_size)
    return Generator(model, config, tokenizer, task="translate", decode=DecodeConfig(max_length=12))


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory, database: Path) -> str:
    folder = tmp_path_factory.mktemp("mlflow")
    shutil.copy(database, folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture(scope="module")
def tracked(tracking_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    return Tracking(tracking_uri, str(tmp_path_factory.mktemp("artifacts")))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNLM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def _what_is_global() -> tuple[object, ...]:
    variables = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    return mlflow.get_tracking_uri(), mlflow.get_registry_uri(), variables, list(sys.path)


@pytest.fixture(scope="module")
def champion(tracked: Tracking, tmp_path_factory: pytest.TempPathFactory) -> Version:
    package = make().save(tmp_path_factory.mktemp("packages") / "toy")
    run_id = tracked.start_run("toys", "register", "register")
    before = _what_is_global()
    made = Registry(tracked).register(package, "toy", run_id=run_id, tags={"note": "first"})
    Registry(tracked).set_alias("toy", "champion", made.version)
    assert _what_is_global() == before
    assert made.digest == package_digest(package)
    tracked.end_run(run_id)
    return made


def test_what_mlflow_knows(tracked: Tracking, champion: Version) -> None:
    found = tracked.client.get_model_version("toy", champion.version)
    assert found.tags["note"] == "first"
    assert found.tags["rnnlm.digest"] == champion.digest
    run = tracked.client.get_run(found.run_id)
    assert [f"models:/{output.model_id}" for output in run.outputs.model_outputs] == [found.source]
    folder = Path(tracked.client.get_model_version_download_uri("toy", champion.version).removeprefix("file://"))
    requirements = (folder / "requirements.txt").read_text().split()
    assert not any(line.startswith(("ray", "datasets")) or "+" in line for line in requirements)
    assert f"mlflow=={mlflow.__version__}" in requirements
    assert not list(folder.rglob("*.pkl"))
    info = mlflow.models.Model.load(str(folder))
    assert {spec.name for spec in info.signature.params.params} == set(DecodeConfig.model_fields) - {"batch_tokens"}
    assert info.saved_input_example_info is not None


def test_a_model_is_found_by_alias_version_and_folder(tracked: Tracking, champion: Version, tmp_path: Path) -> None:
    for uri in ("models:/toy@champion", f"models:/toy/{champion.version}"):
        found = resolve(uri, tracked)
        assert (found.name, found.version, found.digest) == ("toy", champion.version, champion.digest)
    loaded = Registry(tracked).load(champion)
    verify_golden(loaded)
    assert loaded(SOURCES) == make()(SOURCES)
    own = resolve(str(make().save(tmp_path / "mine")))
    assert (own.name, own.version, own.digest) == ("mine", "", champion.digest)


def test_what_does_not_exist_is_answered_with_what_does(
    tracked: Tracking, champion: Version, database: Path, tmp_path: Path
) -> None:
    for uri, message in (
        ("models:/toys@champion", "no registered model 'toys'.*there are toy"),
        ("models:/toy@best", r"versions: 1.*aliases: @champion \(1\)"),
        ("models:/toy/99", "versions: 1"),
        ("models:/toy/latest", "versions: 1"),
        ("models:/toy", "should be models:/NAME@ALIAS"),
    ):
        with pytest.raises(UsageError, match=message):
            resolve(uri, tracked)
    with pytest.raises(UsageError, match="needs a tracking server"):
        resolve("models:/toy@champion")
    with pytest.raises(UsageError, match="no such folder"):
        resolve(str(tmp_path / "absent"), tracked)
    with pytest.raises(UsageError, match="is not a model package"):
        resolve(str(tmp_path), tracked)
    assert Registry(tracked).champion("nobody") is None
    shutil.copy(database, tmp_path / "empty.db")
    empty = Tracking(f"sqlite:///{tmp_path}/empty.db", str(tmp_path))
    with pytest.raises(UsageError, match="none is registered yet"):
        resolve("models:/toy@champion", empty)


def test_a_champion_can_be_taken_back(tracked: Tracking, tmp_path: Path) -> None:
    registry = Registry(tracked)
    run_id = tracked.start_run("toys", "register", "register")
    versions = []
    for seed, alias in enumerate(["champion", "challenger", "champion"]):
        versions.append(registry.register(make(seed).save(tmp_path / f"{seed}"), "chess", run_id=run_id))
        registry.set_alias("chess", alias, versions[-1].version)
    assert len({version.digest for version in versions}) == 3
    registry.set_alias("chess", "champion", versions[1].version)
    registry.set_alias("chess", "champion", versions[1].version)
    assert registry.champion("chess") == versions[1]
    assert registry.rollback("chess") == versions[2]
    assert registry.rollback("chess") == versions[0]
    assert registry.champion("chess") == versions[0]
    with pytest.raises(UsageError, match="was the first champion"):
        registry.rollback("chess")
    with pytest.raises(UsageError, match="no registered model"):
        registry.rollback("nobody")
    with pytest.raises(UsageError, match="versions: 1, 2, 3"):
        registry.set_alias("chess", "champion", "7")


def test_a_version_that_is_there_already_is_described_anew(tracked: Tracking, tmp_path: Path) -> None:
    registry, package = Registry(tracked), make(5).save(tmp_path / "model")
    run_id = tracked.start_run("toys", "register", "register")
    for number in range(2):
        made = registry.register(
            package, "again", run_id=run_id, tags={"why": f"reason {number}"}, description=f"reason {number}"
        )
        found = tracked.client.get_model_version("again", "1")
        assert (made.version, found.tags["why"], found.description) == ("1", f"reason {number}", f"reason {number}")
    assert registry.made_by("again", run_id, made.digest) == made
    assert registry.made_by("again", run_id, "0" * 64) is None
    assert registry.made_by("nothing", run_id, made.digest) is None


class _Down:
    """A client of a server that knows no model, or does not answer."""

    def __init__(self, error_code: int) -> None:
        self.error_code = error_code

    def get_registered_model(self, name: str) -> None:
        raise MlflowException("no answer", self.error_code)

    def search_registered_models(self, **_: int) -> list[str]:
        return []


@pytest.mark.parametrize("error_code", [RESOURCE_DOES_NOT_EXIST, INTERNAL_ERROR])
def test_errors_name_the_server_without_its_password(error_code: int) -> None:
    tracking: Any = SimpleNamespace(uri="postgresql://me:hidden@nowhere/mlflow", client=_Down(error_code))
    with pytest.raises(RnnlmError) as caught:
        Registry(tracking).find("models:/toy@champion")
    (message,) = caught.value.args
    assert "postgresql://nowhere/mlflow" in message


def test_a_package_that_was_changed_after_registration_is_refused(tracked: Tracking, tmp_path: Path) -> None:
    run_id = tracked.start_run("toys", "register", "register")
    made = Registry(tracked).register(make(9).save(tmp_path / "model"), "victim", run_id=run_id)
    folder = Path(tracked.client.get_model_version_download_uri("victim", made.version).removeprefix("file://"))
    path = folder / "artifacts" / "package" / "package.json"
    path.write_text(path.read_text().replace('"max_length": 12', '"max_length": 13'))
    with pytest.raises(RnnlmError, match="has changed since it was registered"):
        resolve("models:/victim/1", tracked)
    path.unlink()
    with pytest.raises(RnnlmError):
        resolve("models:/victim/1", tracked)


def test_it_predicts_where_the_project_is_not_installed(tracked: Tracking, champion: Version, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", OUTSIDER, tracked.uri, json.dumps(SOURCES)]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    outputs, blank, samples, problems = json.loads(done.stdout)
    generator = make()
    assert outputs == generator(SOURCES, beam_size=5)
    assert blank == [False, False, True]
    assert samples == generator(SOURCES, method="sample", seed=3)
    assert "input 0: should be a text (it is missing)" in problems[0]
    assert "beam_size: should be greater than or equal to 1" in problems[1]
    assert "has no effect" in problems[2]
    assert "type hints" not in done.stderr


def post(port: int, body: dict[str, object]) -> dict[str, object]:
    url = f"http://127.0.0.1:{port}/invocations"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return dict(json.loads(answer.read()))


@contextlib.contextmanager
def serving(model: Any) -> Iterator[int]:
    """The port of the server that `mlflow models serve` starts, here in a thread."""
    from mlflow.pyfunc import scoring_server  # warns about type hints of its own

    server = uvicorn.Server(uvicorn.Config(scoring_server.init(model), log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


def test_it_can_be_served(tracked: Tracking, champion: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    model = mlflow.pyfunc.load_model(tracked.client.get_model_version_download_uri("toy", champion.version))
    with serving(model) as port:
        answer = post(port, {"inputs": SOURCES[:2], "params": {"beam_size": 5}})
        expected = make()(SOURCES[:2], beam_size=5)
        assert [row["output"] for row in answer["predictions"]] == expected  # type: ignore[attr-defined]
        split = {"dataframe_split": {"columns": ["source"], "data": [[SOURCES[0]]]}}
        assert [row["output"] for row in post(port, split)["predictions"]] == make()(SOURCES[:1])  # type: ignore[attr-defined]
