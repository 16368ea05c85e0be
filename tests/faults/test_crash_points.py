"""The chain, killed at each point where something becomes visible, and started again: nothing lost, nothing doubled.

Each run is a process of its own that ends without any clean-up. They are forked from one that has imported everything, since
importing takes longer than the run.
"""

import io
import json
import multiprocessing
import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rnnlm import faults

pytestmark = pytest.mark.integration

ROWS = 80
HITS = (1, 2, 4)
"""Which time it comes to a point the chain is killed."""
ONCE = {"version.create", "version.created", "alias.move", "alias.moved", "batch.commit", "batch.committed"}
"""Points that it comes to once."""
IN_TURN = (
    "lease.taken", "store.write", "store.written", "record.write", "run.create", "run.created", "checkpoint.files",
    "checkpoint.commit", "metrics.send", "metrics.sent", "checkpoint.committed", "record.written", "version.create",
    "version.created", "alias.move", "alias.moved", "part.written", "batch.commit", "batch.committed",
)  # fmt: skip
"""The points in an order in which one chain, killed at each and started again, comes to all of them."""
SEARCH = {"ledger.write", "ledger.written"}
"""Points that only a search comes to."""
LONG = "RNNLM_LONG_FAULTS"
EXPERIMENT = """
task = "translate"
data.train = "{folder}/pairs.csv"
data.valid_share = 0.2
data.test_share = 0.1
tokenizer.vocab_size = 300
[model]
embedding_size = 8
hidden_size = 8
decoder_layers = 1
dropout = 0.1
[train]
batch_tokens = 256
max_steps = 40
validate_every = 10
keep_checkpoints = 2
[optim]
lr = 2e-2
ema_decay = 0.9
[decode]
method = "greedy"
max_length = 10
[evaluate]
samples = 2
"""


def _work(place: str, crash: str, log: str) -> None:
    """In a process of its own: the chain, then a batch job with the model that it registered."""
    os.environ.pop(faults.VARIABLE, None)
    if crash:
        os.environ[faults.VARIABLE] = crash
    folder = Path(place)
    with Path(log).open("w", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        code = 1
        try:
            code = _chain(folder)
        except BaseException:
            traceback.print_exc()
        finally:
            stream.flush()
            os._exit(code)


def _chain(folder: Path) -> int:
    import torch

    from pipelines import generate
    from rnnlm import cli
    from rnnlm.stages import run_all

    torch.set_num_threads(1)
    shared = ["--json", "--workers", "0", "--cpus-per-worker", "1", "--store", f"{folder}/store"]
    code = cli.main("run_all", run_all.run, argv=[f"{folder}/crash.toml", *shared])
    if code:
        return code
    job = ["--model", "models:/crash/1", "--input", f"{folder}/new.txt", "--output", f"{folder}/out"]
    return generate.main([*job, "generate.shard_rows=20", *shared])


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pipelines.generate", "rnnlm.integrations.train_worker", "rnnlm.integrations.ray_train", "rnnlm.stages.run_all",
         "rnnlm.integrations.mlflow_registry", "rnnlm.assemble", "rnnlm.api", "rnnlm.evaluation.plots"]
    )  # fmt: skip
    return context


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files to start from, with a database whose tables are made already, which takes MLflow seconds."""
    from rnnlm.integrations.mlflow_tracking import Tracking

    folder = tmp_path_factory.mktemp("template")
    (folder / "store").mkdir()
    Tracking(f"sqlite:///{folder}/store/mlflow.db")
    rows = [f"{number} cats,{number} Katzen" for number in range(120)]
    (folder / "pairs.csv").write_text("\n".join(["source,target", *rows]) + "\n")
    (folder / "new.txt").write_text("".join(f"{number} cats\n" for number in range(ROWS)))
    return folder


class Place:
    """A copy of the template, and what was made in it."""

    def __init__(self, template: Path, folder: Path) -> None:
        shutil.copytree(template, folder)
        (folder / "crash.toml").write_text(EXPERIMENT.format(folder=folder))
        self.folder = folder

    def run(self, server: ForkServerContext, crash: str = "") -> int:
        process = server.Process(target=_work, args=(str(self.folder), crash, f"{self.folder}/log.txt"))
        process.start()
        process.join(120)
        if process.is_alive():
            process.kill()
        assert process.exitcode is not None
        return process.exitcode

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    def weights(self) -> bytes:
        (path,) = self.folder.glob("store/experiments/crash/train-*/checkpoints/step-000000040/model.safetensors")
        return path.read_bytes()

    def rows(self) -> list[dict[str, Any]]:
        (folder,) = self.folder.glob("out/run=*")
        parts = json.loads((folder / "manifest.json").read_text())["parts"]
        assert len(parts) == len(list(folder.glob("*.parquet"))) == 4
        return [
            row for part in parts for row in pq.read_table(io.BytesIO((folder / part["file"]).read_bytes())).to_pylist()
        ]

    def mlflow(self) -> dict[str, Any]:
        """What MLflow shows: runs by stage with status, params, inputs and metric steps, versions and aliases."""
        from mlflow.tracking import MlflowClient

        uri = f"sqlite:///{self.folder}/store/mlflow.db"
        client = MlflowClient(uri, uri)
        experiments = [each.experiment_id for each in client.search_experiments()]
        runs = client.search_runs(experiments, max_results=1000)
        timed = ("seconds", "_s", "per_second", "memory", "steps_again")
        shown = {
            run.data.tags["rnnlm.stage"]: (
                run.info.status,
                {key: value for key, value in run.data.params.items() if str(self.folder) not in value},
                {each.dataset.name for each in run.inputs.dataset_inputs},
                {
                    key: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
                    for key in run.data.metrics
                    if not any(word in key for word in timed)
                },
            )
            for run in runs
        }
        versions = client.search_model_versions("name = 'crash'")
        aliases = dict(client.get_registered_model("crash").aliases)
        stages = sorted(run.data.tags["rnnlm.stage"] for run in runs)
        return {"runs": shown, "stages": stages, "versions": len(versions), "aliases": aliases}


@pytest.fixture(scope="module")
def whole(template: Path, server: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The chain without a crash."""
    place = Place(template, tmp_path_factory.mktemp("whole") / "place")
    assert place.run(server) == 0, place.log()
    return place


def _cases() -> Iterator[tuple[str, ...]]:
    """A chain for each point and hit; in the short form one that is killed at all points in turn."""
    assert {*IN_TURN} == {*faults.POINTS} - SEARCH
    if os.environ.get(LONG):
        yield from ((f"{point}@{hit}",) for point in IN_TURN for hit in ((1, 1, 1) if point in ONCE else HITS))
    else:
        yield tuple(f"{point}@1" for point in IN_TURN)


@pytest.mark.parametrize("crashes", _cases(), ids=lambda crashes: crashes[0] if len(crashes) == 1 else "in turn")
def test_a_killed_chain_ends_as_one_that_was_not(
    crashes: tuple[str, ...],
    template: Path,
    server: ForkServerContext,
    whole: Place,
    tmp_path: Path,
    report: Callable[..., None],
) -> None:
    place = Place(template, tmp_path / "place")
    for crash in crashes:
        assert place.run(server, crash) == faults.EXIT_CODE, place.log()

    assert place.run(server) == 0, place.log()

    assert place.weights() == whole.weights()
    left_out = ("model_version",)
    assert [{key: row[key] for key in row if key not in left_out} for row in place.rows()] == [
        {key: row[key] for key in row if key not in left_out} for row in whole.rows()
    ]
    assert [row["row_id"] for row in place.rows()] == [f"new.txt:{number}" for number in range(1, ROWS + 1)]
    found, expected = place.mlflow(), whole.mlflow()
    for stage, shown in expected["runs"].items():
        assert found["runs"][stage] == shown, stage
    assert found == expected
    report("crash points", points=crashes, kills=len(crashes), equal=True)
