import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pipelines import generate
from rnnlm import cli, experiment
from rnnlm.artifacts import records
from rnnlm.batch.lease import lease
from rnnlm.integrations import ray_cluster
from rnnlm.integrations.mlflow_registry import Registry
from rnnlm.integrations.mlflow_spool import Spool
from rnnlm.integrations.mlflow_tracking import Tracking
from rnnlm.integrations.ray_cluster import Session
from rnnlm.models.build import part_of
from rnnlm.stages import evaluate, ingest, register, run_all, tokenize_corpus, train
from rnnlm.storage import Store
from rnnlm.training import names
from rnnlm.training.checkpoint import read_weights

pytestmark = pytest.mark.integration

KEYS = {"stage", "exit_code", "error", "skipped", "run_id", "metrics", "model_uri", "artifacts", "seconds"}
ANIMALS = {
    "owl": "nachts ruft die alte Eule laut",
    "cat": "auf dem Dach schläft eine Katze",
    "dog": "der Hund bellt heute sehr viel",
    "bee": "eine Biene sucht wieder bunte Blumen",
}
STAGES = {
    "ingest": ingest.run,
    "tokenize_corpus": tokenize_corpus.run,
    "train": train.run,
    "evaluate": evaluate.run,
    "register": register.run,
    "run_all": run_all.run,
}


@dataclass(frozen=True)
class Reply:
    """What a command said: its exit code and the lines of its standard output."""

    code: int
    lines: list[str]

    @property
    def json(self) -> dict[str, Any]:
        """The last line."""
        return dict(json.loads(self.lines[-1]))


def reply_of(call: Callable[[], int]) -> Reply:
    """Call a command in this process and keep what goes to standard output, by whichever way."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out:
        saved = os.dup(1)
        os.dup2(out.fileno(), 1)
        try:
            with open(1, "w", encoding="utf-8", closefd=False) as stdout, contextlib.redirect_stdout(stdout):
                code = call()
        finally:
            os.dup2(saved, 1)
            os.close(saved)
        out.seek(0)
        return Reply(code, out.read().splitlines())


@dataclass(frozen=True)
class Place:
    """A store with its own database of runs, and an experiment to run in it."""

    folder: Path
    file: Path

    @property
    def store(self) -> Store:
        return Store(str(self.folder / "store"))

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.folder}/store/mlflow.db"

    @property
    def name(self) -> str:
        return self.file.stem

    def client(self) -> MlflowClient:
        return MlflowClient(self.tracking_uri, self.tracking_uri)

    def run(self, stage: str, *arguments: str, store: Store | None = None, file: Path | None = None) -> Reply:
        shared = ["--json", "--store", (store or self.store).uri]
        return reply_of(lambda: cli.main(stage, STAGES[stage], argv=[str(file or self.file), *arguments, *shared]))

    def generate(self, *arguments: str) -> Reply:
        return reply_of(lambda: generate.main(["--json", "--store", self.store.uri, *arguments]))

    def runs(self, **tags: str) -> list[Run]:
        client = self.client()
        ids = [each.experiment_id for each in client.search_experiments()]
        found = client.search_runs(ids, max_results=1000)
        return [run for run in found if all(run.data.tags.get(f"rnnlm.{key}") == tags[key] for key in tags)]

    def aliases(self) -> dict[str, str]:
        return {alias: str(version) for alias, version in self.client().get_registered_model(self.name).aliases.items()}

    def created(self, stage: str) -> list[str]:
        return sorted(record.created for record in records(self.store, self.name, stage))


def with_database(place: Place, database: Path) -> Place:
    """The tables of MLflow are there already."""
    (place.folder / "store").mkdir()
    shutil.copy(database, place.folder / "store/mlflow.db")
    return place


@pytest.fixture(scope="module")
def one_ray(ray_session: Session) -> Iterator[None]:
    """The commands of this module start no Ray of their own but share the one of the tests, and leave it running."""
    session = Session(True, ray_session.resources)
    session.close = lambda: None  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_cluster, "connect", lambda *_, **__: session)
        for variable in ("RAY_ADDRESS", "RNNLM_STORE", "MLFLOW_TRACKING_URI"):
            patch.delenv(variable, raising=False)
        patch.setenv("RNNLM_CACHE", tempfile.mkdtemp(prefix="rnnlm-cache-"))
        yield


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, one_ray: None, database: Path) -> Place:
    """Four sentences that the first word of the source tells apart, so that a tiny model soon gets them right."""
    folder = tmp_path_factory.mktemp("pairs")
    with (folder / "pairs.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "source", "target"])
        for number in range(240):
            animal = list(ANIMALS)[number % 4]
            writer.writerow([f"row-{number}", f"{animal} {number}", ANIMALS[animal]])
    file = folder / "animals.toml"
    file.write_text(
        f"""
        task = "translate"
        [data]
        train = "{folder}/pairs.csv"
        columns.id = "id"
        valid_share = 0.2
        test_share = 0.1
        [tokenizer]
        vocab_size = 300
        [model]
        embedding_size = 16
        hidden_size = 32
        decoder_layers = 1
        dropout = 0.0
        [train]
        batch_tokens = 512
        max_steps = 200
        validate_every = 100
        label_smoothing = 0.0
        [optim]
        lr = 2e-2
        [decode]
        method = "greedy"
        max_length = 40
        [evaluate]
        samples = 5
        [tune]
        trials = 2
        max_steps = 10
        [tune.space]
        "optim.clip_grad_norm" = {{kind = "choice", values = [1.0, 2.0]}}
        """,
        "utf-8",
    )
    return with_database(Place(folder, file), database)


@pytest.fixture(scope="module")
def first(pairs: Place) -> Reply:
    return pairs.run("run_all", "--workers", "0")


@pytest.fixture(scope="module")
def again(pairs: Place, first: Reply) -> tuple[Reply, int, int]:
    """The same command a second time, and the number of runs before and after it."""
    before = len(pairs.runs())
    reply = pairs.run("run_all", "--workers", "0")
    return reply, before, len(pairs.runs())


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, one_ray: None, database: Path) -> Place:
    folder = tmp_path_factory.mktemp("text")
    blocks = [
        f"{10 + number} bottles stand on the wall\nand {9 + number} are left when one falls\n" for number in range(300)
    ]
    (folder / "bottles.txt").write_text("\n".join(blocks), "utf-8")
    file = folder / "bottles.toml"
    file.write_text(
        f"""
        task = "text"
        data.train = "{folder}/bottles.txt"
        data.valid_share = 0.1
        data.test_share = 0.05
        tokenizer.vocab_size = 300
        [model]
        embedding_size = 16
        hidden_size = 16
        num_layers = 1
        [train]
        lanes = 4
        bptt_length = 16
        max_steps = 30
        validate_every = 15
        [optim]
        lr = 2e-2
        [decode]
        max_length = 20
        [evaluate]
        samples = 2
        """,
        "utf-8",
    )
    return with_database(Place(folder, file), database)


@pytest.fixture(scope="module")
def on_two_workers(text: Place) -> Reply:
    return text.run("run_all", "--workers", "2")


def test_run_all_says_what_it_made(pairs: Place, first: Reply) -> None:
    assert first.code == 0, first.lines
    line = first.json
    assert line.keys() == KEYS
    assert (line["stage"], line["exit_code"], line["error"], line["skipped"]) == ("run_all", 0, None, False)
    assert line["model_uri"] == "models:/animals/1"
    assert line["metrics"]["test/bleu"] > line["metrics"]["baseline/token_dictionary/bleu"]
    assert line["seconds"] > 0
    assert all(Path(path).exists() for path in line["artifacts"].values())
    assert first.lines[0] == first.lines[-2]
    assert Path(first.lines[0].rpartition(" ")[2]).is_relative_to(pairs.folder / "store/logs")


def test_mlflow_shows_the_chain(pairs: Place, first: Reply) -> None:
    (parent,) = pairs.runs(stage="pipeline")
    assert parent.info.run_id == first.json["run_id"]
    assert pairs.client().get_experiment(parent.info.experiment_id).name == pairs.name
    assert parent.data.metrics["test/bleu"] == first.json["metrics"]["test/bleu"]

    children = {run.data.tags["rnnlm.stage"]: run for run in pairs.runs() if _parent(run) == parent.info.run_id}
    assert children.keys() == {"tune", "train", "evaluate", "register"}
    trials = [run for run in pairs.runs() if _parent(run) == children["tune"].info.run_id]
    assert len(trials) == 2
    assert len(pairs.runs()) == 7
    assert {run.info.status for run in pairs.runs()} == {"FINISHED"}
    assert all(run.data.tags["rnnlm.task"] == "translate" for run in (parent, *children.values()))


def _parent(run: Run) -> str | None:
    return run.data.tags.get("mlflow.parentRunId")


def test_the_training_run_holds_curves_and_settings(pairs: Place, first: Reply) -> None:
    (run,) = pairs.runs(stage="train")
    client = pairs.client()

    expected = {names.TRAIN_LOSS, names.VALID_PERPLEXITY, names.LEARNING_RATE, names.GRAD_NORM}
    expected |= {names.TOKENS_PER_SECOND, names.PADDING_SHARE, names.phase_seconds("train")}
    assert expected <= run.data.metrics.keys()
    assert [point.step for point in client.get_metric_history(run.info.run_id, names.TRAIN_LOSS)] == list(range(1, 201))
    assert {"optim.lr": "0.02", "train.max_steps": "200", "seed": "0"}.items() <= run.data.params.items()
    assert run.data.params["optim.clip_grad_norm"] in ("1.0", "2.0")
    assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["tokens"]
    assert {"history.parquet", "curves.png", "experiment.json"} <= _artifacts(client, run)


def test_the_evaluation_run_holds_report_and_samples(pairs: Place, first: Reply) -> None:
    (run,) = pairs.runs(stage="evaluate")

    expected = {"test/bleu", "test/chrf", "baseline/copied_source/bleu", "baseline/token_dictionary/bleu"}
    assert expected <= run.data.metrics.keys()
    assert {"report.json", "report.md", "samples.json", "pictures"} <= _artifacts(pairs.client(), run)
    assert "samples.json" in run.data.tags["mlflow.loggedArtifacts"]
    samples = json.loads(Path(pairs.client().download_artifacts(run.info.run_id, "samples.json")).read_bytes())
    assert len(samples["data"]) == 5


def _artifacts(client: MlflowClient, run: Run) -> set[str]:
    return {each.path for each in client.list_artifacts(run.info.run_id)}


def test_the_model_version_is_champion_and_says_how_good_it_is(pairs: Place, first: Reply) -> None:
    version = pairs.client().get_model_version_by_alias(pairs.name, "champion")

    assert str(version.version) == "1"
    assert version.run_id == pairs.runs(stage="register")[0].info.run_id
    assert float(version.tags["test/bleu"]) == pytest.approx(first.json["metrics"]["test/bleu"], rel=1e-4)
    assert version.tags["rnnlm.reason"].startswith("Promoted as the first version: bleu")
    assert len(version.tags["rnnlm.digest"]) == 64


def test_the_second_run_has_nothing_to_do(first: Reply, again: tuple[Reply, int, int]) -> None:
    reply, before, after = again

    assert (reply.code, reply.json["skipped"], reply.json["error"]) == (0, True, None)
    assert before == after
    for key in ("run_id", "model_uri", "metrics", "artifacts"):
        assert reply.json[key] == first.json[key]


def test_the_best_settings_are_an_experiment_of_their_own(pairs: Place, again: object) -> None:
    path = Path(pairs.run("run_all", "--workers", "0").json["artifacts"]["tune_best"])
    best = experiment.load(path)

    assert (best.name, best.tune.trials, best.train.max_steps) == (pairs.name, 0, 200)
    assert pairs.run("train", file=path).json["skipped"]


def test_other_evaluation_settings_redo_what_follows_from_them(pairs: Place, again: object) -> None:
    before = {
        stage: pairs.created(stage) for stage in ("ingest", "tokenize_corpus", "tune", "train", "evaluate", "register")
    }

    reply = pairs.run("run_all", "evaluate.samples=3", "--workers", "0")

    after = {stage: pairs.created(stage) for stage in before}
    assert reply.code == 0
    assert not reply.json["skipped"]
    assert {stage: len(after[stage]) - len(before[stage]) for stage in before} == {
        "ingest": 0, "tokenize_corpus": 0, "tune": 0, "train": 0, "evaluate": 1, "register": 1,
    }  # fmt: skip
    assert all(after[stage] == before[stage] for stage in ("ingest", "tokenize_corpus", "tune", "train"))
    version = pairs.client().get_model_version_by_alias(pairs.name, "challenger")
    assert version.tags["rnnlm.reason"].startswith("Not promoted")
    assert pairs.aliases() == {"champion": "1", "challenger": "2"}


def test_another_tracking_server_gets_everything_again(
    pairs: Place, first: Reply, again: object, database: Path, tmp_path: Path
) -> None:
    shutil.copy(database, tmp_path / "other.db")
    elsewhere = f"sqlite:///{tmp_path}/other.db"
    before = {stage: pairs.created(stage) for stage in ("ingest", "train")}

    reply = pairs.run("run_all", "--workers", "0", "--tracking-uri", elsewhere)

    assert (reply.code, reply.json["skipped"]) == (0, False)
    assert reply.json["metrics"] == first.json["metrics"]
    client = MlflowClient(elsewhere, elsewhere)
    runs = client.search_runs([client.get_experiment_by_name(pairs.name).experiment_id])
    assert sorted(run.data.tags["rnnlm.stage"] for run in runs) == ["evaluate", "pipeline", "register", "train", "tune"]
    assert all(_parent(run) == reply.json["run_id"] for run in runs if run.data.tags["rnnlm.stage"] != "pipeline")
    trained = next(run for run in runs if run.data.tags["rnnlm.stage"] == "train")
    assert "curves.png" in _artifacts(client, trained)
    assert str(client.get_model_version_by_alias(pairs.name, "champion").version) == "1"
    assert len(pairs.created("train")) == len(before["train"])
    assert pairs.created("ingest") == before["ingest"]


def test_forced_work_is_done_again_and_changes_no_identity(pairs: Place, again: object) -> None:
    (before,) = records(pairs.store, pairs.name, "tokenize_corpus")

    reply = pairs.run("tokenize_corpus", "--force")

    (after,) = records(pairs.store, pairs.name, "tokenize_corpus")
    assert not reply.json["skipped"]
    assert after.created > before.created
    assert (after.digest, after.outputs["manifest"]["splits"]) == (before.digest, before.outputs["manifest"]["splits"])


def test_training_on_two_workers_reaches_the_registry(text: Place, on_two_workers: Reply) -> None:
    assert on_two_workers.code == 0, on_two_workers.lines
    assert on_two_workers.json["metrics"].keys() >= {
        "test/perplexity",
        "test/bits_per_byte",
        "baseline/unigram/perplexity",
    }
    (run,) = text.runs(stage="train")
    steps = [point.step for point in text.client().get_metric_history(run.info.run_id, names.TRAIN_LOSS)]
    assert steps == list(range(1, 31))
    assert text.aliases() == {"champion": "1"}


def test_better_models_become_champion_and_worse_ones_do_not(text: Place, on_two_workers: Reply) -> None:
    better = text.run("run_all", "--workers", "0", "train.max_steps=90")
    version = text.client().get_model_version_by_alias(text.name, "champion")
    assert better.code == 0, better.lines
    assert (better.json["model_uri"], str(version.version)) == ("models:/bottles/2", "2")
    assert "beats the champion's" in version.tags["rnnlm.reason"]

    # One stage after the other, each on its own; what they read is named by its run.
    settings = ["train.max_steps=3", "--workers", "0"]
    for stage in ("ingest", "tokenize_corpus"):
        assert text.run(stage, *settings).json["skipped"]
    trained = text.run("train", *settings).json
    measured = text.run("evaluate", "--from", trained["run_id"]).json
    assert measured["metrics"]["test/perplexity"] > better.json["metrics"]["test/perplexity"]
    registered = text.run("register", "--from", measured["run_id"]).json
    version = text.client().get_model_version_by_alias(text.name, "challenger")
    assert (registered["model_uri"], str(version.version)) == ("models:/bottles/3", "3")
    assert version.tags["rnnlm.reason"].startswith("Not promoted: bits_per_byte")
    assert text.aliases() == {"champion": "2", "challenger": "3"}

    # The first experiment still is what it was, although newer records lie beside its own.
    back = text.run("run_all", "--workers", "0")
    assert back.json["skipped"]
    assert (back.json["model_uri"], back.json["metrics"]) == ("models:/bottles/1", on_two_workers.json["metrics"])
    assert text.run("evaluate").json["metrics"] == on_two_workers.json["metrics"]
    assert text.run("register").json["model_uri"] == "models:/bottles/1"

    assert Registry(Tracking(text.tracking_uri)).rollback(text.name).version == "1"
    assert text.aliases()["champion"] == "1"


@pytest.mark.parametrize(
    ("stage", "arguments", "code", "said"),
    [
        ("run_all", ["train.max_stebs=3"], 2, "max_steps"),
        ("ingest", ["data.train=/nowhere/*.csv"], 2, "/nowhere"),
        ("evaluate", ["train.max_steps=77"], 2, "no record of train"),
        ("evaluate", ["--from", "deadbeef"], 2, "--from deadbeef"),
        ("train", ["--workers", "-1"], 2, "--workers"),
        ("train", ["--tracking-uri", "http://127.0.0.1:9", "--workers", "0"], 1, "does not answer"),
    ],
)
def test_the_json_line_of_a_failure_has_all_keys(
    pairs: Place, first: Reply, stage: str, arguments: list[str], code: int, said: str
) -> None:
    fresh = Store(str(pairs.folder / "fresh"))

    reply = pairs.run(stage, *arguments, store=pairs.store if stage in ("evaluate", "train") else fresh)

    assert reply.code == code
    assert reply.json.keys() == KEYS
    assert (reply.json["stage"], reply.json["exit_code"]) == (stage, code)
    assert said in reply.json["error"]


@pytest.fixture(scope="module")
def inputs(pairs: Place, first: Reply) -> dict[str, Path]:
    """The same five rows in three formats, two of them odd: blank, and longer than allowed."""
    rows = ["owl 7", "bee 900", "", "cat 3", "dog " * 200]
    folder = pairs.folder / "inputs"
    folder.mkdir()
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["key", "source"], *([f"k{number}", row] for number, row in enumerate(rows))])
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), "utf-8")
    (folder / "rows.txt").write_text("".join(f"{row}\n" for row in rows), "utf-8")
    return {path.suffix[1:]: path for path in folder.iterdir()}


LIMITS = ("generate.max_source_tokens=100", "generate.shard_rows=3")


def _output(reply: Reply) -> Path:
    assert reply.code == 0, reply.lines
    return Path(reply.json["artifacts"]["output"])


def _parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*.parquet"))}


def test_generate_gives_each_row_an_answer_in_order(pairs: Place, inputs: dict[str, Path], tmp_path: Path) -> None:
    given = ["--input", *(str(inputs[kind]) for kind in ("csv", "jsonl", "txt")), "--output", str(tmp_path), *LIMITS]
    model = ["--model", f"models:/{pairs.name}@champion"]

    reply = pairs.generate(*model, *given, "generate.id_column=none")

    folder = _output(reply)
    rows = pq.read_table(sorted(folder.glob("part-*.parquet")), partitioning=None).to_pylist()
    assert list(rows[0]) == ["row_id", "source", "output", "score", "status", "reason", "model_name", "model_version"]
    numbers = [*range(2, 7), *range(1, 6), *range(1, 6)]  # the header of a CSV file counts
    kinds = [*["csv"] * 5, *["jsonl"] * 5, *["txt"] * 5]
    assert [row["row_id"] for row in rows] == [f"rows.{kind}:{number}" for kind, number in zip(kinds, numbers)]
    assert [row["reason"] for row in rows[2::5]] == ["blank input"] * 3
    assert [row["status"] == "rejected" for row in rows] == [False, False, False, False, True] * 3
    assert all(rows[number]["output"] for number in (0, 1, 3))
    assert [row["output"] for row in rows[:5]] == [row["output"] for row in rows[10:]]
    assert "more than generate.max_source_tokens" in rows[4]["reason"]
    assert {(row["model_name"], row["model_version"]) for row in rows} == {(pairs.name, "1")}
    assert len((folder / "rejects.jsonl").read_text("utf-8").splitlines()) == 3
    assert reply.json["metrics"]["batch/rows"] == 15
    (run,) = [each for each in pairs.runs(stage="generate") if each.info.run_id == reply.json["run_id"]]
    assert pairs.client().get_experiment(run.info.experiment_id).name == "animals/batch"

    before = len(pairs.runs())
    second = pairs.generate(*model, *given, "generate.id_column=none")
    assert second.json["skipped"]
    assert second.json.keys() == KEYS
    assert len(pairs.runs()) == before

    waiting = Spool(pairs.store)
    waiting.add("set_tags", run.info.run_id, {"tags": {"colour": "red"}})
    for option in ("--check", "--verify"):
        assert pairs.generate(*model, *given, "generate.id_column=none", option).code == 0
    assert len(waiting) == 1
    assert pairs.generate(*model, *given, "generate.id_column=none").code == 0
    assert len(waiting) == 0


def test_generate_does_only_what_is_missing_and_the_same_on_actors(
    pairs: Place, inputs: dict[str, Path], tmp_path: Path
) -> None:
    torch.set_num_threads(1)  # as on the actors: the last bits of a score depend on it
    package = pairs.run("run_all", "--workers", "0").json["artifacts"]["register_package"]
    given = ["--model", package, "--input", str(inputs["csv"]), *LIMITS, "generate.id_column=key"]
    folder = _output(pairs.generate(*given, "--output", str(tmp_path / "here")))
    whole = _parts(folder)
    kept = folder / "part-00000.parquet"
    stamp = kept.stat().st_mtime_ns
    (folder / "manifest.json").unlink()
    (folder / "part-00001.parquet").unlink()
    (folder / "ledger/part-00001.json").unlink()

    assert _output(pairs.generate(*given, "--output", str(tmp_path / "here"))) == folder

    assert list(whole) == ["part-00000.parquet", "part-00001.parquet"]
    assert _parts(folder) == whole
    assert kept.stat().st_mtime_ns == stamp
    assert pq.read_table(kept)["row_id"].to_pylist() == ["k0", "k1", "k2"]

    on_actors = pairs.generate(*given, "--output", str(tmp_path / "ray"), "generate.in_process_rows=0")
    assert _parts(_output(on_actors)) == whole


def test_generate_refuses_what_another_process_works_on(pairs: Place, inputs: dict[str, Path], tmp_path: Path) -> None:
    given = ["--model", f"models:/{pairs.name}/1", "--input", str(inputs["txt"]), "--output", str(tmp_path)]
    folder = _output(pairs.generate(*given))
    (folder / "manifest.json").unlink()

    with lease(Store(str(folder))) as held:
        reply = pairs.generate(*given)

    assert reply.code == 1
    assert f"held by {held.holder}" in reply.json["error"]
    assert not (folder / "manifest.json").exists()
    unknown = pairs.generate(
        "--model", f"models:/{pairs.name}@nobody", "--input", str(inputs["txt"]), "--output", str(tmp_path)
    )
    assert unknown.code == 2
    assert "@champion (1)" in unknown.json["error"]


def _wait_for_steps(store: Store, least: int, timeout_s: float = 200.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for path in Path(store.uri).glob("experiments/*/train-*/attempts/*/progress.json"):
            with contextlib.suppress(FileNotFoundError):
                if json.loads(path.read_bytes())["step"] >= least:
                    return
        time.sleep(0.1)
    raise AssertionError(f"no training got to step {least}")


LONG = ("train.max_steps=1500", "train.validate_every=1000")


def test_sigint_saves_and_the_same_command_goes_on(
    text: Place, on_two_workers: Reply, clean_environment: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "pipelines.train", str(text.file), *LONG, "--json", "--store", text.store.uri]
    process = subprocess.Popen(
        [*command, "--workers", "1"], env=clean_environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    marker = clean_environment["RNNLM_TEST"]
    try:
        _wait_for_steps(text.store, 20)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    lines = out.splitlines()
    line = json.loads(lines[-1])

    assert process.returncode == 130
    assert time.monotonic() - started < 30
    assert line.keys() == KEYS
    assert (line["exit_code"], line["error"], line["run_id"]) == (130, "SIGINT", None)
    resume = next(following for said, following in pairwise(lines) if "Go on with" in said)
    assert resume.strip() == f"python -m pipelines.train {' '.join(command[3:])} --workers 1"
    assert _left_behind(marker) == []
    (run,) = _of_long_training(text)
    assert run.info.status == "KILLED"
    reached = _logged(text, run)
    assert 0 < len(reached) < 750

    reply = text.run("train", *LONG, "--workers", "0")

    (run,) = _of_long_training(text)
    assert reply.code == 0, reply.lines
    assert (run.info.status, run.info.run_id) == ("FINISHED", reply.json["run_id"])
    assert _logged(text, run) == list(range(2, 1501, 2))


def _left_behind(marker: str) -> list[str]:
    """Processes that carry the marker in their environment, or did when they started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RNNLM_TEST") == marker and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def _of_long_training(place: Place) -> list[Run]:
    return [run for run in place.runs(stage="train") if run.data.params["train.max_steps"] == "1500"]


def _logged(place: Place, run: Run) -> list[int]:
    return [point.step for point in place.client().get_metric_history(run.info.run_id, names.TRAIN_LOSS)]


def test_sigterm_ends_with_its_own_code(text: Place, on_two_workers: Reply) -> None:
    store = Store(str(text.folder / "terminated"))
    for stage in ("ingest", "tokenize_corpus"):
        assert text.run(stage, store=store).code == 0

    def end() -> None:
        _wait_for_steps(store, 5)
        os.kill(os.getpid(), signal.SIGTERM)

    ender = threading.Thread(target=end)
    ender.start()
    reply = text.run("train", *LONG, "--workers", "0", "--tracking-uri", text.tracking_uri, store=store)
    ender.join()

    assert reply.code == 143
    assert reply.json["error"] == "SIGTERM"
    assert "KILLED" in {run.info.status for run in _of_long_training(text)}
    (checkpoint,) = Path(store.uri).glob("experiments/*/train-*/checkpoints/*/checkpoint.json")
    assert checkpoint.exists()


def test_training_goes_on_from_a_registered_model(pairs: Place, first: Reply, tmp_path: Path) -> None:
    lines = (pairs.folder / "pairs.csv").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "new.csv").write_text("".join([lines[0], *(line.replace("ruft", "singt") for line in lines[1:])]))
    weekly = tmp_path / "weekly.toml"
    weekly.write_text(pairs.file.read_text("utf-8").replace(f"{pairs.folder}/pairs.csv", f"{tmp_path}/new.csv"))
    start = f"init.from=models:/{pairs.name}@champion"
    short = ["--workers", "0", "tune.trials=0", "train.max_steps=3"]

    assert pairs.run("train", start, "--check", file=weekly).code == 0
    for unknown in ("models:/nobody@champion", f"models:/{pairs.name}@nobody", f"models:/{pairs.name}/99"):
        assert pairs.run("train", f"init.from={unknown}", "--check", file=weekly).code == 2
    for stage in ("ingest", "tokenize_corpus"):
        assert pairs.run(stage, start, file=weekly).code == 0
    reply = pairs.run("train", start, 'init.freeze=["embedding", "encoder"]', *short, file=weekly)
    assert reply.code == 0, reply.lines
    champion = Registry(Tracking(pairs.tracking_uri)).find(f"models:/{pairs.name}@champion")
    generator = Registry(Tracking(pairs.tracking_uri)).load(champion)
    (record,) = records(pairs.store, "weekly", "train")
    made = read_weights(record.store.fetch(record.files["checkpoint"]))
    kept = {name for name, tensor in generator.model.state_dict().items() if torch.equal(tensor, made[name])}
    assert kept == {name for name in made if part_of(name) in ("embedding", "encoder")}
    assert record.outputs["init"]["version"] == champion.version
    (run,) = [each for each in pairs.runs(stage="train") if each.info.run_id == record.run_id]
    assert run.data.tags["rnnlm.init"] == f"{pairs.name}/{champion.version}"

    other = pairs.run("train", start, *short, "model.hidden_size=16", file=weekly)
    assert other.code == 2
    assert "is another model than [model] describes" in other.json["error"]
    assert pairs.run("tokenize_corpus", file=weekly).code == 0
    other = pairs.run("train", start, *short, "seed=1", file=weekly)
    assert other.code == 2, other.lines
    assert pairs.run("train", "init.from=models:/nobody@champion", *short, file=weekly).code == 2
