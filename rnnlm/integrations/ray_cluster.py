"""One Ray for a whole command: started here on loopback addresses, or an existing one that is connected to.

What a training takes of it (`Placement`) is decided here too, and refused at once where the cluster cannot give it: Ray
itself would wait for such resources for ever.
"""

import atexit
import contextlib
import importlib
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from rnnlm import memory
from rnnlm.errors import RnnlmError, UnreachableError, UsageError
from rnnlm.storage import Store

_log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 256 << 20
MAX_DEFAULT_WORKERS = 4
MIN_POSITIONS = 4_096
"""Positions of a training step below which a worker more makes a CPU host slower, not faster; see docs/log.md."""
CONNECT_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 5.0
_TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
MEETING_VARIABLE = "RNNLM_MEETING"
"""Set for the processes of a Ray that was started here: a folder in which workers find one another, private to its owner."""

COMMON_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    # A report waits for the controller's next look at its workers, which comes every 2 s by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
LOCAL_ENVIRONMENT = {
    # Ray's own name for "one host": every process listens on loopback only.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    "RAY_enable_metrics_collection": "0",
    # Watches for spot instances that are about to be taken away; one process fewer.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Of all workers, as an environment of their own would cost each training a start of new ones.
    **memory.ENVIRONMENT,
}


@dataclass(frozen=True)
class Resources:
    """What a cluster has in all: cores, GPUs, hosts.

    Attributes:
        num_cpus: cores.
        num_gpus: GPUs.
        num_hosts: machines.
        nodes: cores of each of Ray's nodes that has any; empty: one node has them all.
    """

    num_cpus: int
    num_gpus: int = 0
    num_hosts: int = 1
    nodes: tuple[int, ...] = ()

    def room(self, cpus: int) -> int:
        """How many processes with so many cores fit, each on one node."""
        return sum(cores // cpus for cores in self.nodes or (self.num_cpus,))

    def share(self, processes: int) -> int:
        """Cores of each of so many processes: the most with which all of them fit, or 1."""
        most = max(1, self.num_cpus // max(1, processes))
        return next((cpus for cpus in range(most, 1, -1) if self.room(cpus) >= processes), 1)


@dataclass(frozen=True)
class Placement:
    """The processes of one training.

    Attributes:
        num_workers: processes; 0 runs the training in the calling process.
        cpus_per_worker: cores and threads of each.
        gpus_per_worker: GPUs of each.
        most_workers: processes that a training may grow to, where it may go on with fewer; None: as many as it began with.
    """

    num_workers: int
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0
    most_workers: int | None = None

    @property
    def is_elastic(self) -> bool:
        """Whether the number of processes may change on the way."""
        return self.most_workers is not None and self.most_workers > self.num_workers

    def resources_per_worker(self) -> dict[str, float]:
        """What Ray is asked for, a worker."""
        request: dict[str, float] = {"CPU": self.cpus_per_worker}
        return request | ({"GPU": self.gpus_per_worker} if self.gpus_per_worker else {})


def placement(
    resources: Resources,
    workers: int | None = None,
    cpus_per_worker: int | None = None,
    gpus_per_worker: float | None = None,
    positions: int | None = None,
) -> Placement:
    """Fill in what was not asked for, and check the rest against what there is.

    With GPUs each gets one worker. Without, the cores are shared out over at most `MAX_DEFAULT_WORKERS` workers, and a
    training gets no more of them than have `MIN_POSITIONS` positions each in a step, but one on each node at least: a
    recurrent kernel takes as long for half as many rows, and each worker updates all weights, so with a small share two
    threads of one process are faster than two processes.

    Args:
        resources: what there is.
        workers: processes.
        cpus_per_worker: cores and threads of each.
        gpus_per_worker: GPUs of each.
        positions: of one training step, over all workers; None where the work can be cut into any shares.

    Raises:
        UsageError: the cluster is too small for the request.
    """
    gpus = (1.0 if resources.num_gpus else 0.0) if gpus_per_worker is None else gpus_per_worker
    if workers is None:
        if gpus:
            workers = max(1, int(resources.num_gpus // gpus))
        else:
            each = cpus_per_worker or max(1, -(-resources.num_cpus // MAX_DEFAULT_WORKERS))
            workers = max(1, min(MAX_DEFAULT_WORKERS, resources.num_cpus // each))
            if positions is not None:
                least = min(workers, max(1, len(resources.nodes)))
                workers = max(least, min(workers, positions // MIN_POSITIONS))
    cpus = cpus_per_worker or resources.share(workers)
    if workers:
        _check_fits(resources, Placement(workers, cpus, gpus))
    return Placement(workers, cpus, gpus)


def trial_placement(
    resources: Resources,
    concurrency: int,
    workers: int | None = None,
    cpus_per_worker: int | None = None,
    gpus_per_worker: float | None = None,
) -> tuple[Placement, int]:
    """The processes of one trial of a search, and how many trials fit at one time, at most `concurrency`.

    A trial of one worker trains in Tune's own process, which saves starting another.

    Raises:
        UsageError: the cluster is too small for one trial.
    """
    count = max(1, workers or 1)
    cpus = cpus_per_worker or resources.share(count * concurrency)
    gpus = (1.0 if resources.num_gpus else 0.0) if gpus_per_worker is None else gpus_per_worker
    _check_fits(resources, Placement(count, cpus, gpus))
    at_once = min(concurrency, resources.room(cpus) // count)
    if gpus:
        at_once = min(at_once, int(resources.num_gpus // (count * gpus)))
    return Placement(0 if count == 1 else count, cpus, gpus), at_once


def _check_fits(resources: Resources, wanted: Placement) -> None:
    problems = []
    if wanted.num_workers * wanted.cpus_per_worker > resources.num_cpus:
        problems.append(
            f"--workers {wanted.num_workers} x --cpus-per-worker {wanted.cpus_per_worker} "
            f"needs {wanted.num_workers * wanted.cpus_per_worker} cores, the cluster has {resources.num_cpus}"
        )
    elif resources.room(wanted.cpus_per_worker) < wanted.num_workers:
        problems.append(
            f"--workers {wanted.num_workers} x --cpus-per-worker {wanted.cpus_per_worker} has no room on the nodes, "
            f"which have {', '.join(map(str, resources.nodes))} cores"
        )
    if wanted.num_workers * wanted.gpus_per_worker > resources.num_gpus:
        problems.append(
            f"--workers {wanted.num_workers} x --gpus-per-worker {wanted.gpus_per_worker:g} "
            f"needs {wanted.num_workers * wanted.gpus_per_worker:g} GPUs, the cluster has {resources.num_gpus}"
        )
    if problems:
        raise UsageError("; ".join(problems))


class Session:
    """A connection to Ray. `close`, or leaving the `with` block, stops the Ray that was started here.

    Attributes:
        started_here: whether it ends with this session.
        resources: what the cluster has.
        processes: what was started here.
    """

    def __init__(self, started_here: bool, resources: Resources) -> None:
        self.started_here = started_here
        self.resources = resources
        self.processes: list[subprocess.Popen[bytes]] = []
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; stop what was started here. May be called twice."""
        if self._open:
            self._open = False
            import ray

            started = _descendants([process.pid for process in self.processes])
            ray.shutdown()
            for process in self.processes:
                try:
                    process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            # Ray's workers end by themselves once their raylet is gone, but only some seconds later.
            for worker in started:
                with contextlib.suppress(psutil.Error):
                    worker.kill()
            psutil.wait_procs(started, STOP_TIMEOUT_S)

    def placement(
        self,
        workers: int | None = None,
        cpus_per_worker: int | None = None,
        gpus_per_worker: float | None = None,
        positions: int | None = None,
    ) -> Placement:
        """`placement` on this cluster."""
        return placement(self.resources, workers, cpus_per_worker, gpus_per_worker, positions)

    def trial_placement(
        self,
        concurrency: int,
        workers: int | None = None,
        cpus_per_worker: int | None = None,
        gpus_per_worker: float | None = None,
    ) -> tuple[Placement, int]:
        """`trial_placement` on this cluster."""
        return trial_placement(self.resources, concurrency, workers, cpus_per_worker, gpus_per_worker)

    def check_hosts(self, store: Store, tracking_uri: str | None = None) -> None:
        """On a cluster of several hosts: each one has to see the store, and reach the tracking server, which has to be one.

        Raises:
            UsageError: a database file, or a folder that a host does not share; the message names the host.
            UnreachableError: a host does not reach the store or the server.
        """
        if self.resources.num_hosts < 2:
            return
        if tracking_uri is not None and tracking_uri.startswith("sqlite:"):
            raise UsageError(
                f"--tracking-uri {tracking_uri}: a database file serves one host, the cluster has "
                f"{self.resources.num_hosts}: {', '.join(sorted(_hosts()))}; start an MLflow server and give its http:// address"
            )
        token = secrets.token_hex(16)
        name = f".probe-{token}"
        store.write_bytes(name, token.encode())
        try:
            for host, problem in _probe_hosts(store.uri, name, token, tracking_uri).items():
                if problem is not None:
                    raise type(problem)(f"host {host}: {problem}")
        finally:
            store.delete(name)


def connect(
    address: str | None = None,
    *,
    store: Store | None = None,
    tracking_uri: str | None = None,
    num_cpus: int | None = None,
) -> Session:
    """Start Ray on this machine, or connect to one that runs.

    Args:
        address: `HOST:PORT` or `auto`; None takes `RAY_ADDRESS` (set in a Ray job), and without that starts one.
        store: where the work is written; checked from every host of an existing cluster.
        tracking_uri: MLflow's, checked likewise.
        num_cpus: cores of a Ray that is started here; by default those this process may use.

    Raises:
        UnreachableError: there is no Ray at that address, or a host does not reach one of the others.
        UsageError: an address of another kind; a store or a database that not all hosts see.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    _set_defaults(COMMON_ENVIRONMENT)
    if address is None or address == "local":
        return _start(num_cpus or _own_cores())
    if address.startswith("ray://"):
        raise UsageError(f"--address {address}: Ray Client is not supported; use HOST:PORT, or `ray job submit`")
    session = _join(address)
    try:
        if store is not None:
            session.check_hosts(store, tracking_uri)
    except BaseException:
        session.close()
        raise
    return session


def _start(num_cpus: int) -> Session:
    _set_defaults(LOCAL_ENVIRONMENT)
    _own_token()
    os.environ[MEETING_VARIABLE] = str(_private_folder())
    import ray

    _read_environment_again()
    try:
        with _own_signal_handlers():
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=True,
                logging_level=logging.WARNING,
            )
    except (OSError, RuntimeError, ValueError, TimeoutError) as error:
        raise UnreachableError(f"Ray could not be started here: {_first_line(error)}") from error
    session = Session(True, _resources())
    session.processes = _started_processes()
    return session


def _read_environment_again() -> None:
    """Ray reads these settings when it is imported, which may have been before we set them."""
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False
    raylet: Any = importlib.import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _started_processes() -> "list[subprocess.Popen[bytes]]":
    """The processes that Ray started in this one; Ray kills them at the end but does not wait for them."""
    from ray._private import worker

    node = worker._global_node
    infos = [] if node is None else [info for group in node.all_processes.values() for info in group]
    return [info.process for info in infos]


def _descendants(parents: list[int]) -> list[psutil.Process]:
    """The processes that some processes have started, and those that these have started."""
    found = []
    for parent in parents:
        with contextlib.suppress(psutil.Error):
            found += psutil.Process(parent).children(recursive=True)
    return found


def _join(address: str) -> Session:
    host, separator, port = address.rpartition(":")
    if separator and port.isdigit():
        try:
            socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise UnreachableError(f"no Ray at {address}: {error.strerror or error}") from None
    elif address != "auto":
        raise UsageError(f"--address {address}: should be HOST:PORT or auto")
    import ray

    try:
        if separator:
            _knock(address)
        with _own_signal_handlers():
            ray.init(address=address, log_to_driver=True, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        raise UnreachableError(f"no Ray at {address}: {_first_line(error)}") from error
    return Session(False, _resources())


def _knock(address: str) -> None:
    """Ask the cluster for one value. `ray.init` with a wrong token would wait for minutes without a word.

    Raises:
        ray.exceptions.RayError: it does not take our token, or is no Ray.
    """
    raylet: Any = importlib.import_module("ray._raylet")
    raylet.GcsClient(address=address).internal_kv_get(b"session_name", b"session", timeout=CONNECT_TIMEOUT_S)


def _own_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _resources() -> Resources:
    import ray

    total = ray.cluster_resources()
    alive = [node for node in ray.nodes() if node["Alive"]]
    hosts = {node["NodeManagerHostname"] for node in alive}
    cores = (int(node["Resources"].get("CPU", 0)) for node in alive)
    nodes = tuple(sorted((count for count in cores if count), reverse=True))
    return Resources(int(total.get("CPU", 0)), int(total.get("GPU", 0)), max(1, len(hosts)), nodes)


def _hosts() -> dict[str, str]:
    """A node of each host that is there."""
    import ray

    return {node["NodeManagerHostname"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _probe_hosts(uri: str, name: str, token: str, tracking_uri: str | None) -> Mapping[str, RnnlmError | None]:
    """Run the probe once on each host; None where all is well."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = ray.remote(num_cpus=0, max_retries=0)(_probe)
    running = {
        host: probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            uri, name, token, tracking_uri
        )
        for host, node in _hosts().items()
    }
    return {host: ray.get(reference, timeout=60) for host, reference in running.items()}


def _probe(uri: str, name: str, token: str, tracking_uri: str | None) -> RnnlmError | None:
    """What is wrong with the store or the tracking server as seen from this host."""
    remedy = "give a --store that all hosts share"
    try:
        if Store(uri).read_bytes(name) != token.encode():
            return UsageError(f"the store {uri} holds something else there; {remedy}")
        Store(uri).write_bytes(f"{name}-{socket.gethostname()}", b"")
        Store(uri).delete(f"{name}-{socket.gethostname()}")
        if tracking_uri is not None:
            from rnnlm.integrations.mlflow_tracking import check_reachable

            remedy = "give a --tracking-uri that all hosts reach"
            check_reachable(tracking_uri)
    except FileNotFoundError:
        return UsageError(f"the folder {uri} is another one there; {remedy}")
    except UnreachableError as error:
        return UnreachableError(f"{error}; {remedy}")
    except Exception as error:
        return UsageError(f"{error}; {remedy}")
    return None


def _set_defaults(values: Mapping[str, str]) -> None:
    for name, value in values.items():
        os.environ.setdefault(name, value)


def _own_token() -> None:
    """A random token in a file that only we can read. Ray would write one that everybody can read."""
    if os.environ["RAY_AUTH_MODE"] != "token" or any(os.environ.get(name) for name in _TOKEN_VARIABLES):
        return
    path = _private_folder() / "token"
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def _private_folder() -> Path:
    """A folder that only we can read, deleted when this process ends."""
    folder = tempfile.mkdtemp(prefix="rnnlm-ray-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Ray puts a handler of its own on SIGTERM, which ends the process; ours come back afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    saved: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in saved.items():
            if handler is not None:
                signal.signal(number, handler)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
