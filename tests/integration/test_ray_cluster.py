import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray

from rnnlm.errors import UnreachableError, UsageError
from rnnlm.integrations import ray_cluster
from rnnlm.integrations.ray_cluster import Resources, Session
from rnnlm.storage import Store

pytestmark = pytest.mark.integration

SCRIPT = """
import contextlib, json, os, psutil, signal, stat
from rnnlm.integrations import ray_cluster

marker = lambda *_: None
signal.signal(signal.SIGTERM, marker)
with ray_cluster.connect() as session:
    me = psutil.Process()
    addresses = set()
    for process in me.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            addresses |= {c.laddr.ip for c in process.net_connections("inet") if c.status == "LISTEN"}
    token = os.environ["RAY_AUTH_TOKEN_PATH"]
    facts = {
        "addresses": sorted(addresses),
        "mode": stat.S_IMODE(os.stat(token).st_mode),
        "token": token,
        "cpus": session.resources.num_cpus,
        "handler": signal.getsignal(signal.SIGTERM) is marker,
        "started_here": session.started_here,
    }
facts["left"] = [process.pid for process in me.children(recursive=True)]
session.close()
print(json.dumps(facts))
"""


def test_a_ray_of_ours_is_closed_to_others_and_leaves_nothing(tmp_path: Path) -> None:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # A search path alone would let Ray's workers see the folder that this test runs in.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=ours,
        cwd=Path.cwd(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert all(address.removeprefix("::ffff:") == "127.0.0.1" for address in facts["addresses"])
    assert facts["addresses"]
    assert facts["mode"] == 0o600
    assert not Path(facts["token"]).exists()
    assert facts["cpus"] == len(os.sched_getaffinity(0))
    assert facts["handler"]
    assert facts["started_here"]
    assert facts["left"] == []
    assert not [process for process in psutil.process_iter(["environ"]) if _belongs_to(process, facts["token"])]


def _belongs_to(process: psutil.Process, token: str) -> bool:
    return (process.info["environ"] or {}).get("RAY_AUTH_TOKEN_PATH") == token


JOIN = """
import sys
import rnnlm.integrations.ray_cluster as ray_cluster

with ray_cluster.connect(sys.argv[1]) as session:
    print(session.started_here, session.resources, session.processes)
"""


def test_a_running_ray_is_joined_and_left_running(ray_session: Session) -> None:
    address = ray.get_runtime_context().gcs_address

    done = subprocess.run(
        [sys.executable, "-c", JOIN, address], capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "False Resources(num_cpus=2, num_gpus=0, num_hosts=1, nodes=(2,)) []" in done.stdout
    assert ray.cluster_resources()["CPU"] == 2


def test_memory_stays_with_a_worker(ray_session: Session) -> None:
    """As `tests/unit/core/test_memory.py` shows of a process with that environment."""

    @ray.remote
    def faults() -> int:
        import resource

        import torch

        torch.ones(10 << 20)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            torch.ones(10 << 20)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert ray_session.started_here
    assert ray.get(faults.remote()) < 1_000  # of 10,240 pages each time


def test_a_wrong_token_is_no_access(ray_session: Session, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0" * 64)
    environment = os.environ | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}

    done = subprocess.run(
        [sys.executable, "-c", JOIN, ray.get_runtime_context().gcs_address],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 1
    assert "UnreachableError: no Ray at" in done.stderr


def test_no_ray_at_an_address_is_said_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

    with pytest.raises(UnreachableError, match=f"no Ray at 127.0.0.1:{port}"):
        ray_cluster.connect(f"127.0.0.1:{port}")


def test_several_hosts_need_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(False, Resources(4, num_hosts=2))
    session._open = False  # nothing to close
    monkeypatch.setattr(ray_cluster, "_join", lambda _: session)
    monkeypatch.setattr(ray_cluster, "_hosts", lambda: {"second": "n2", "first": "n1"})

    with pytest.raises(UsageError, match="serves one host, the cluster has 2: first, second; start an MLflow server"):
        ray_cluster.connect("first:6379", store=Store(str(tmp_path)), tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")


def test_one_host_needs_no_probe(tmp_path: Path) -> None:
    Session(False, Resources(4)).check_hosts(Store(str(tmp_path)), f"sqlite:///{tmp_path}/mlflow.db")

    assert list(tmp_path.iterdir()) == []


def test_each_host_is_probed(ray_session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(False, Resources(2, num_hosts=2))

    session.check_hosts(Store(str(tmp_path)))

    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(Store, "write_bytes", lambda *_: None)
    with pytest.raises(UsageError, match=rf"host {socket.gethostname()}: the folder .* is another one there"):
        session.check_hosts(Store(str(tmp_path / "elsewhere")))


def test_each_host_has_to_reach_the_tracking_server(ray_session: Session, tmp_path: Path) -> None:
    session = Session(False, Resources(2, num_hosts=2))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    said = rf"host {socket.gethostname()}: tracking server http://127.0.0.1:{port}: does not answer .*; give a --tracking-uri"

    with pytest.raises(UnreachableError, match=said):
        session.check_hosts(Store(str(tmp_path)), f"http://127.0.0.1:{port}")

    assert list(tmp_path.iterdir()) == []
