"""A cluster of two nodes on this machine: a submitted job, a training from outside, and what strangers get."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient

from rnnlm.integrations.mlflow_registry import Registry
from rnnlm.integrations.mlflow_tracking import Tracking

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 240
EXPERIMENT = """
task = "text"
data.train = "{folder}/lines.txt"
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
max_steps = 20
[optim]
lr = 2e-2
[evaluate]
samples = 0
"""


def free_ports(count: int = 1) -> int:
    """The first of so many consecutive ports that are free."""
    while True:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, OverflowError):
            taken = [stack.enter_context(socket.socket()) for _ in range(count)]
            taken[0].bind(("127.0.0.1", 0))
            first = int(taken[0].getsockname()[1])
            for number, each in enumerate(taken[1:], 1):
                each.bind(("127.0.0.1", first + number))
            return first


@dataclass(frozen=True)
class Cluster:
    """A running cluster, and a folder for what is done on it."""

    folder: Path
    environment: dict[str, str]
    """Of a shell that has sourced the cluster's environment."""

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    @property
    def token(self) -> str:
        return (self.folder / "cluster/token").read_text("utf-8")

    @property
    def temporary(self) -> Path:
        return Path((self.folder / "cluster/temporary").read_text("utf-8").strip())

    def python(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment | variables
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )

    def members(self) -> list[psutil.Process]:
        mark = str(self.folder / "cluster")
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("RNNLM_CLUSTER") == mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found


def stop(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "cluster/stop.sh"), str(folder / "cluster")], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("two")
    own = ("RAY_", "RNNLM_", "MLFLOW_", "TUNE_", "GLOO_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    clean |= {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    ports = {"RAY_PORT": str(free_ports()), "RAY_DASHBOARD_PORT": str(free_ports())}
    ports |= {"RAY_AGENT_PORT": str(free_ports(3)), "PYTHON": sys.executable}
    # Not a pipe: the cluster would keep it open.
    with (log := folder / "start.log").open("w") as stream:
        started = subprocess.run(
            ["bash", str(ROOT / "cluster/two_nodes.sh"), str(folder / "cluster")],
            env=clean | ports,
            stdout=stream,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT_S,
            check=False,
        )
    try:
        assert started.returncode == 0, log.read_text("utf-8")
        lines = (folder / "cluster/environment").read_text("utf-8").splitlines()
        sourced = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        blocks = [f"{10 + number} bottles stand on the wall\n\n" for number in range(300)]
        (folder / "lines.txt").write_text("".join(blocks), "utf-8")
        (folder / "new.txt").write_text("10 bottles\n\n11 bottles\n", "utf-8")
        (folder / "bottles.toml").write_text(EXPERIMENT.format(folder=folder), "utf-8")
        yield Cluster(folder, clean | sourced)
    finally:
        stop(folder)


def last_lines(output: str) -> list[dict[str, Any]]:
    """The JSON lines of the commands in an output."""
    return [json.loads(line) for line in output.splitlines() if line.startswith('{"stage"')]


@pytest.fixture(scope="module")
def submitted(cluster: Cluster) -> list[dict[str, Any]]:
    """The whole chain and a batch job, as one submitted job; returns their JSON lines."""
    places = {"RNNLM_STORE": str(cluster.store), "MLFLOW_TRACKING_URI": cluster.tracking_uri}
    job = ["--working-dir", ".", "--runtime-env-json", json.dumps({"env_vars": places})]
    learn = f"python -m pipelines.run_all {cluster.folder}/bottles.toml --json"
    apply = f"python -m pipelines.generate --model models:/bottles/1 --input {cluster.folder}/new.txt"
    both = f"{learn} && {apply} --output {cluster.folder}/output decode.max_length=5 --json"
    done = cluster.python("-m", "ray.scripts.scripts", "job", "submit", *job, "--", "sh", "-c", both)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return last_lines(done.stdout)


def test_the_cluster_is_two_nodes_on_one_address(cluster: Cluster) -> None:
    script = "import ray; ray.init(logging_level='ERROR'); print(len([n for n in ray.nodes() if n['Alive']]))"

    done = cluster.python("-c", script)

    assert done.stdout.split() == ["2"], done.stderr
    assert (cluster.folder / "cluster/token").stat().st_mode & 0o777 == 0o600


def test_what_we_open_is_on_loopback(cluster: Cluster) -> None:
    """Ray binds its dashboard and its agents where it is told; the rest of its ports are protected by the token."""
    listening = {
        (process.name(), connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
        for process in cluster.members()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    dashboard = int(cluster.environment["RAY_API_SERVER_ADDRESS"].rpartition(":")[2])

    assert {address for _, address, port in listening if port == dashboard} == {"127.0.0.1"}
    (cluster.folder / "listening.txt").write_text("\n".join(map(str, sorted(listening))), "utf-8")


def test_strangers_cannot_submit_jobs(cluster: Cluster) -> None:
    address = f"{cluster.environment['RAY_API_SERVER_ADDRESS']}/api/jobs/"

    assert _status(address) in (401, 403)
    assert _status(address, "0" * 64) in (401, 403)
    assert _status(address, cluster.token) == 200


def _status(address: str, token: str | None = None, body: bytes | None = None) -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_a_stage_without_the_token_says_so(cluster: Cluster) -> None:
    stranger = {"RAY_AUTH_TOKEN": "1" * 64, "RAY_AUTH_TOKEN_PATH": "", "RNNLM_STORE": str(cluster.folder / "theirs")}
    file = str(cluster.folder / "bottles.toml")

    assert cluster.python("-m", "pipelines.ingest", file, **stranger).returncode == 0
    assert cluster.python("-m", "pipelines.tokenize_corpus", file, **stranger).returncode == 0
    done = cluster.python("-m", "pipelines.train", file, "--json", **stranger)

    assert done.returncode == 1
    assert "Authentication token is missing or incorrect" in last_lines(done.stdout)[-1]["error"]


def test_a_submitted_job_runs_the_chain(cluster: Cluster, submitted: list[dict[str, Any]]) -> None:
    learned, applied = submitted

    assert (learned["stage"], learned["exit_code"], learned["error"]) == ("run_all", 0, None)
    assert learned["model_uri"] == applied["model_uri"] == "models:/bottles/1"
    assert all(path.startswith(str(cluster.store)) for path in learned["artifacts"].values())
    assert (applied["stage"], applied["exit_code"], applied["metrics"]["batch/rows"]) == ("generate", 0, 3)


def test_a_training_from_outside_uses_both_nodes(cluster: Cluster, submitted: list[dict[str, Any]]) -> None:
    given = ["--store", str(cluster.store), "--tracking-uri", cluster.tracking_uri, "--workers", "2", "--json"]
    file = str(cluster.folder / "bottles.toml")

    done = cluster.python("-m", "pipelines.train", file, "train.max_steps=5", *given)

    line = last_lines(done.stdout)[-1]
    assert (done.returncode, line["error"], line["skipped"]) == (0, None, False)
    run = MlflowClient(cluster.tracking_uri).get_run(line["run_id"])
    assert run.info.status == "FINISHED"
    history = MlflowClient(cluster.tracking_uri).get_metric_history(line["run_id"], "train/loss_nats")
    assert [point.step for point in history] == [1, 2, 3, 4, 5]


def test_everything_outlives_the_cluster(cluster: Cluster, submitted: list[dict[str, Any]]) -> None:
    learned, applied = submitted
    temporary = cluster.temporary
    assert len(cluster.members()) > 4

    stopped = stop(cluster.folder)

    assert stopped.returncode == 0, stopped.stderr
    assert cluster.members() == []
    assert not list(temporary.parent.glob(f"{temporary.name}*"))
    tracking = Tracking(cluster.tracking_uri)
    assert tracking.run_status(learned["run_id"]) == "FINISHED"
    registry = Registry(tracking)
    version = registry.find(learned["model_uri"])
    assert isinstance(registry.load(version)("12 bottles", max_length=5), str)
    history = pq.read_table(learned["artifacts"]["train_history"])
    assert history["step"].to_pylist() == list(range(1, 21))
    rows = pq.ParquetFile(f"{applied['artifacts']['output']}/part-00000.parquet").read().to_pylist()
    assert [row["source"] for row in rows] == ["10 bottles", "", "11 bottles"]
    assert all(row["status"] == "ok" for row in rows)
