"""Stores of all kinds, with something wrong: full, read-only, with torn files, without locks, killed in the middle.

Commands are processes of their own, on real mounts, and on an object store that answers over HTTP.
"""

import contextlib
import hashlib
import importlib
import io
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FileSelector, FileType, S3FileSystem

from rnnlm import faults
from rnnlm.storage import Store

pytestmark = pytest.mark.integration

EXPERIMENT = """
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
CHAIN = ("ingest", "tokenize_corpus", "train")
STAGES = (*CHAIN, "evaluate", "register", "tune", "run_all")


class Reply(NamedTuple):
    """How a command ended."""

    code: int
    json: dict[str, Any]
    text: str


def _work(stage: str, arguments: list[str], folder: str, variables: dict[str, str], log: str) -> None:
    """In a process of its own: a command."""
    os.chdir(folder)
    os.environ.update(variables)
    with Path(log).open("w", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        code = 99
        try:
            import torch

            torch.set_num_threads(1)
            if "CLOCK" in variables:
                _let_the_clock_jump(float(variables["CLOCK"]))
            if stage == "generate":
                code = importlib.import_module("pipelines.generate").main(arguments)
            else:
                from rnnlm import cli

                code = cli.main(stage, importlib.import_module(f"rnnlm.stages.{stage}").run, argv=arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            stream.flush()
            os._exit(code)


def _let_the_clock_jump(by: float) -> None:
    """From the third look at it on, the time of day is wrong, and jumps back and forth."""
    real, seen = time.time, [0]

    def jumping() -> float:
        seen[0] += 1
        return real() + (by if seen[0] > 2 and seen[0] % 4 < 2 else 0.0)

    time.time = jumping


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pipelines.generate", "rnnlm.integrations.train_worker", "rnnlm.integrations.ray_train", "rnnlm.stages.run_all",
         "rnnlm.integrations.mlflow_registry", "rnnlm.assemble", "rnnlm.api", "rnnlm.evaluation.plots",
         "rnnlm.integrations.lock_table", "pytest", "pyarrow.fs", "pyarrow.parquet"]
    )  # fmt: skip
    return context


class Desk:
    """A folder with an experiment and its corpus, and commands that run there."""

    def __init__(self, folder: Path, server: ForkServerContext, database: Path) -> None:
        folder.mkdir()
        (folder / "small.toml").write_text(EXPERIMENT)
        (folder / "corpus.txt").write_text("".join(f"line {n} of the corpus\n\n" for n in range(1000)))
        shutil.copy(database, folder / "mlflow.db")
        self.folder, self.server = folder, server

    def run(self, stage: str, store: Path | str, *more: str, **variables: str) -> Reply:
        process, log = self.start(stage, store, *more, **variables)
        process.join(250)
        if process.is_alive():
            process.kill()
        return self.reply(process, log)

    def start(self, stage: str, store: Path | str, *more: str, **variables: str) -> tuple[Any, str]:
        """Start a command; the process and where it writes what it says."""
        shared = ["--json", "--store", str(store)]
        if "--tracking-uri" not in more:
            shared += ["--tracking-uri", f"sqlite:///{self.folder}/mlflow.db"]
        alone = [] if stage == "generate" else ["small.toml", "--workers", "0", "--cpus-per-worker", "1"]
        log = f"{self.folder}/said-{time.monotonic_ns()}.txt"
        arguments = (stage, [*alone, *shared, *more], str(self.folder), variables, log)
        process = self.server.Process(target=_work, args=arguments)
        process.start()
        return process, log

    @staticmethod
    def reply(process: Any, log: str) -> Reply:
        text = Path(log).read_text()
        last = [line for line in text.splitlines() if line.startswith('{"stage"')]
        assert process.exitcode is not None
        return Reply(process.exitcode, json.loads(last[-1]) if last else {}, text)


Mounted = Callable[..., contextlib.AbstractContextManager[Path]]


@pytest.fixture
def desk(tmp_path: Path, server: ForkServerContext, database: Path) -> Desk:
    return Desk(tmp_path / "desk", server, database)


def state(store: Path) -> dict[str, str]:
    """Digests of what a chain leaves in a store: corpus, tokens, weights; not of what names a run or a time."""
    changing = ("artifact.json", "run.json", "curves.png", "state.json", "checkpoint.json", "starts.json")
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.glob("experiments/**/*"))
        if path.is_file() and path.name not in changing and "attempts" not in path.parts and "history" not in path.name
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, server: ForkServerContext, database: Path) -> Path:
    """The store of a chain that saw no fault."""
    desk = Desk(tmp_path_factory.mktemp("whole") / "desk", server, database)
    for stage in CHAIN:
        reply = desk.run(stage, desk.folder / "store")
        assert reply.code == 0, reply.text
    return desk.folder / "store"


def fill(disk: Path, left: int) -> Path:
    """Leave so many bytes on a disk."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(bytes(max(0, free - left)))
    return disk / "filler"


def test_a_disk_that_is_full_at_any_moment(
    desk: Desk, whole: Path, mounted: Mounted, tmp_path: Path, long_form: bool, report: Callable[..., None]
) -> None:
    rooms = {stage: [0, *(4096 * 2**n for n in range(7))] for stage in CHAIN}
    if not long_form:
        rooms = {"ingest": [20_480], "tokenize_corpus": [24_576], "train": [32_768]}
    started, refused = time.monotonic(), 0
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=16m", "tmpfs") as disk:
        store = disk / "store"
        for stage in CHAIN:
            for room in rooms[stage]:
                filler = fill(disk, room)
                reply = desk.run(stage, store)
                filler.unlink()
                records = list(store.glob(f"experiments/small/{stage}-*/artifact.json"))
                if reply.code == 0:
                    assert long_form, f"{stage} did with {room} bytes"
                    assert records
                    shutil.rmtree(records[0].parent)
                    continue
                refused += 1
                assert reply.code == 1, reply.text
                assert "No space left on device" in reply.json["error"], (stage, room, reply.text)
                assert str(disk) in reply.json["error"] or "training failed" in reply.json["error"], reply.text
                assert "Traceback" not in reply.text
                assert not records, "no record claims success"
            reply = desk.run(stage, store)
            assert reply.code == 0, reply.text
            assert not reply.json["skipped"]
        assert state(store) == state(whole)
        assert not list(store.rglob(".writing-*"))
    seconds = round(time.monotonic() - started, 1)
    report("full disk: ingest, tokenize_corpus, train", faults=refused, lost=0, doubled=0, equal=True, seconds=seconds)


def test_a_store_that_is_read_only(desk: Desk, whole: Path, mounted: Mounted, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=16m", "tmpfs") as disk:
        shutil.copytree(whole, disk / "store")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        before = {path: path.stat().st_mtime_ns for path in disk.rglob("*")}
        asked = [(stage, more) for stage in (*STAGES, "ingest") for more in ((), ("--check",))]
        model = ("--model", f"{disk}/store", "--input", "corpus.txt", "--output", f"{disk}/out")
        asked += [("generate", model), ("generate", (*model, "--check")), ("ingest", ("--force",))]
        for stage, more in asked:
            reply = desk.run(stage, disk / "store", *more)
            assert reply.code == 1, (stage, more, reply.text)
            assert str(disk) in reply.json["error"], (stage, more, reply.text)
            assert "cannot be written" in reply.json["error"], (stage, more, reply.text)
            assert len(reply.text.splitlines()) <= 3, reply.text
            assert "Traceback" not in reply.text
        assert {path: path.stat().st_mtime_ns for path in disk.rglob("*")} == before


def test_a_torn_shard_of_tokens(desk: Desk, whole: Path, long_form: bool) -> None:
    store = desk.folder / "store"
    shutil.copytree(whole, store)
    shutil.rmtree(next(store.glob("experiments/small/train-*/")))
    shard = next(store.glob("experiments/small/tokenize_corpus-*/tokens/tokens/train/*.arrow"))
    content = shard.read_bytes()
    changed = content[:100] + bytes([content[100] ^ 1]) + content[101:]
    for torn in (changed, content[:-1], b"", None) if long_form else (changed,):
        shard.unlink(missing_ok=True)
        if torn is not None:
            shard.write_bytes(torn)
        reply = desk.run("train", store)
        assert reply.code == 1, reply.text
        assert str(shard) in reply.json["error"]
        assert "python -m pipelines.tokenize_corpus EXPERIMENT.toml --force" in reply.json["error"]
        assert not list(store.glob("experiments/small/train-*/checkpoints/*"))
    assert desk.run("tokenize_corpus", store, "--force").code == 0
    assert desk.run("train", store).code == 0
    assert state(store) == state(whole)


class Bucket:
    """An object store of its own for each test, that answers over HTTP."""

    def __init__(self, endpoint: str) -> None:
        secrets = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        self.variables = {**secrets, "AWS_ENDPOINT_URL": endpoint}
        self.filesystem = S3FileSystem(
            access_key="someone", secret_key="secret", region="us-east-1", endpoint_override=endpoint,
            allow_bucket_creation=True,
        )  # fmt: skip
        self.name = f"bucket{time.monotonic_ns()}"
        self.filesystem.create_dir(self.name)
        self.store, self.output = f"s3://{self.name}/store", f"s3://{self.name}/out"

    def files(self, below: str) -> dict[str, bytes]:
        selector = FileSelector(f"{self.name}/{below}", recursive=True, allow_not_found=True)
        names = [info.path for info in self.filesystem.get_file_info(selector) if info.type == FileType.File]
        return {name.split("/", 2)[2]: self.filesystem.open_input_stream(name).read() for name in sorted(names)}

    def rows(self) -> list[dict[str, Any]]:
        """What the one job wrote, by its manifest."""
        files = self.files("out")
        (manifest,) = (name for name in files if name.endswith("/manifest.json"))
        parts = [manifest.replace("manifest.json", part["file"]) for part in json.loads(files[manifest])["parts"]]
        assert len(parts) == 3
        assert not any("lease" in name for name in files)
        return [row for part in parts for row in pq.read_table(io.BytesIO(files[part])).to_pylist()]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(endpoint: str) -> Bucket:
    return Bucket(endpoint)


def run_chain(desk: Desk, bucket: Bucket, **variables: str) -> Reply:
    """From the corpus to the output of a job, all in the bucket; the first failure, or how the job ended."""
    (desk.folder / "new.txt").write_text("".join(f"line {n}\n" for n in range(12)))
    variables = {**bucket.variables, "RNNLM_CACHE": f"{desk.folder}/cache", **variables}
    reply = desk.run("run_all", bucket.store, **variables)
    if reply.code:
        return reply
    return desk.run("generate", bucket.store, *job(bucket), **variables)


def job(bucket: Bucket) -> list[str]:
    model = ("--model", "models:/small/1", "--input", "new.txt", "--output", bucket.output)
    return [*model, "decode.max_length=8", "generate.shard_rows=4"]


def shown(desk: Desk) -> dict[str, Any]:
    """What MLflow shows: how many runs of each stage, how they ended, versions and aliases."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{desk.folder}/mlflow.db", f"sqlite:///{desk.folder}/mlflow.db")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    stages = sorted((run.data.tags["rnnlm.stage"], run.info.status) for run in runs)
    steps = {
        run.data.tags["rnnlm.stage"]: {
            key: [point.step for point in client.get_metric_history(run.info.run_id, key)] for key in run.data.metrics
        }
        for run in runs
    }
    versions = len(client.search_model_versions("name = 'small'"))
    return {
        "stages": stages,
        "steps": steps,
        "versions": versions,
        "aliases": dict(client.get_registered_model("small").aliases),
    }


def digests(bucket: Bucket) -> dict[str, str]:
    """As `state`, of a bucket."""
    changing = ("artifact.json", "run.json", "curves.png", "state.json", "checkpoint.json", "starts.json")
    return {
        name: hashlib.sha256(content).hexdigest()
        for name, content in bucket.files("store/experiments").items()
        if name.split("/")[-1] not in changing
        and not any(word in name for word in ("attempts/", "history", "evaluate-", "register-"))
    }


class Whole(NamedTuple):
    """What a chain in a bucket left that nobody killed."""

    desk: Desk
    bucket: Bucket
    digests: dict[str, str]
    rows: list[dict[str, Any]]
    shown: dict[str, Any]


@pytest.fixture(scope="module")
def in_bucket(
    endpoint: str, tmp_path_factory: pytest.TempPathFactory, server: ForkServerContext, database: Path, whole: Path
) -> Whole:
    desk, bucket = Desk(tmp_path_factory.mktemp("bucket") / "desk", server, database), Bucket(endpoint)
    reply = run_chain(desk, bucket)
    assert reply.code == 0, reply.text
    found = Whole(desk, bucket, digests(bucket), bucket.rows(), shown(desk))
    assert found.digests == state(whole), "the store makes no difference"
    assert any(name.startswith("mlartifacts/") for name in bucket.files("store")), "MLflow's files too"
    assert [row["row_id"] for row in found.rows] == [f"new.txt:{number}" for number in range(1, 13)]
    return found


def _crashes() -> list[str]:
    if not os.environ.get("RNNLM_LONG_FAULTS"):
        return ["record.write@2"]
    later = {"store.write": 9, "store.written": 20, "record.write": 2, "record.written": 3, "metrics.send": 2}
    return [f"{point}@{later.get(point, 1)}" for point in faults.POINTS]


@pytest.mark.parametrize("crash", _crashes())
def test_a_killed_command_on_an_object_store(
    crash: str, desk: Desk, bucket: Bucket, in_bucket: Whole, report: Callable[..., None]
) -> None:
    started = time.monotonic()
    point, _, hit = crash.partition("@")
    killed = run_chain(desk, bucket, RNNLM_CRASH=f"{point}@{hit}")
    assert killed.code == faults.EXIT_CODE, killed.text

    reply = run_chain(desk, bucket)

    assert reply.code == 0, reply.text
    assert digests(bucket) == in_bucket.digests
    rows = bucket.rows()
    assert rows == in_bucket.rows
    assert shown(desk) == in_bucket.shown
    seconds = round(time.monotonic() - started, 1)
    report(f"object store: {crash}", kills=1, lost=0, doubled=0, equal=True, seconds=seconds)


def test_of_two_jobs_on_an_object_store_one_works(in_bucket: Whole, report: Callable[..., None]) -> None:
    import sqlite3

    started = time.monotonic()
    desk, bucket = in_bucket.desk, in_bucket.bucket
    (desk.folder / "new.txt").write_text("".join(f"line {n}\n" for n in range(600)))
    variables = {**bucket.variables, "RNNLM_CACHE": f"{desk.folder}/cache"}
    asked = [*job(bucket), "--lock", "required"]
    first, log = desk.start("generate", bucket.store, *asked, **variables)
    with contextlib.closing(sqlite3.connect(desk.folder / "mlflow.db", timeout=30)) as connection:
        while not connection.execute("select holder from rnnlm_leases").fetchall():
            assert first.is_alive()
            time.sleep(0.02)

    refused = desk.run("generate", bucket.store, *asked, **variables)
    still_working = first.is_alive()
    first.join(120)

    assert still_working
    assert refused.code == 1, refused.text
    assert f"held by process {first.pid} on " in refused.json["error"]
    done = desk.reply(first, log)
    assert done.code == 0, done.text
    assert done.json["metrics"]["batch/rows"] == 600
    seconds = round(time.monotonic() - started, 1)
    report("two jobs on an object store", kills=0, lost=0, doubled=0, equal=True, seconds=seconds)


def test_a_store_that_cannot_lock(desk: Desk, bucket: Bucket) -> None:
    server = ("--tracking-uri", "http://127.0.0.1:9")
    for more in ((), ("--check",)):
        reply = desk.run("ingest", bucket.store, *server, "--lock", "required", *more, **bucket.variables)
        assert reply.code == 2, reply.text
        assert reply.json["error"].startswith(f"--lock required: {bucket.store} cannot create a file exclusively")
        assert "--tracking-uri" in reply.json["error"]
        assert not bucket.files("store")
    reply = desk.run("ingest", bucket.store, *server, **bucket.variables)
    assert reply.code == 0, reply.text
    assert "leases are not exclusive here" in reply.text
    assert not [name for name in bucket.files("store") if "lease" in name]


def test_a_bucket_that_is_not_there(desk: Desk, bucket: Bucket) -> None:
    absent = bucket.store.replace("bucket", "absent")
    reply = desk.run("ingest", absent, "--check", **bucket.variables)
    assert reply.code == 1, reply.text
    assert "there is no absent" in reply.json["error"]
    reply = desk.run("ingest", bucket.store, "--check", **bucket.variables)
    assert reply.code == 0, reply.text
    assert not bucket.files(""), "a check writes nothing"
    nobody = {**bucket.variables, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    reply = desk.run("ingest", bucket.store, **nobody)
    assert reply.code == 1, reply.text
    assert bucket.store in reply.json["error"]


@pytest.mark.parametrize("jump", [3600.0, -3600.0] if os.environ.get("RNNLM_LONG_FAULTS") else [-3600.0])
def test_a_clock_that_jumps(jump: float, desk: Desk, whole: Path, long_form: bool, report: Callable[..., None]) -> None:
    store = desk.folder / "store"
    started = time.monotonic()
    for stage in (*CHAIN, "run_all", "run_all") if long_form else CHAIN:
        reply = desk.run(stage, store, CLOCK=str(jump))
        assert reply.code == 0, reply.text
    assert {name: digest for name, digest in state(store).items() if name in state(whole)} == state(whole)
    assert not long_form or shown(desk)["versions"] == 1
    seconds = round(time.monotonic() - started, 1)
    report(f"clock that jumps by {jump:g} s", kills=0, lost=0, doubled=0, equal=True, seconds=seconds)


def _hold(place: tuple[str, str], ready: Any) -> None:
    """In a process of its own: hold the lease until somebody ends it."""
    from rnnlm.batch.lease import lease, locking

    with locking(_locking(place)), lease(Store(place[0])):
        ready.set()
        time.sleep(60)


def _want(place: tuple[str, str], start: Any, end: Any, said: Any) -> None:
    """In a process of its own: want the lease, at the same moment as others."""
    from rnnlm.batch.lease import LeaseHeldError, lease, locking

    with locking(_locking(place)):
        start.wait(30)
        try:
            with lease(Store(place[0])) as held:
                held.check()
                said.put("kept")
                end.wait(30)
                held.check()
        except LeaseHeldError:
            said.put("refused")
            end.wait(30)


def _locking(place: tuple[str, str]) -> Any:
    from rnnlm.batch.lease import Locking
    from rnnlm.integrations.lock_table import LockTable

    return Locking("required", lambda: LockTable(place[1]))


@pytest.mark.parametrize("where", ["files", "rows"])
def test_of_those_who_wait_for_a_killed_holder_one_takes_over(
    where: str, server: ForkServerContext, tmp_path: Path, long_form: bool, report: Callable[..., None]
) -> None:
    started, rounds, waiters = time.monotonic(), 25 if long_form else 2, 3
    place = (str(tmp_path) if where == "files" else "s3://bucket/folder", f"sqlite:///{tmp_path}/locks.db")
    for _ in range(rounds):
        ready, said = server.Event(), server.Queue()
        start, end = server.Barrier(waiters), server.Barrier(waiters)
        wanting = [server.Process(target=_want, args=(place, start, end, said)) for _ in range(waiters)]
        holder = server.Process(target=_hold, args=(place, ready))
        holder.start()
        assert ready.wait(60)
        holder.kill()
        for process in wanting:
            process.start()
        answers = sorted(said.get(timeout=60) for _ in wanting)
        for process in (holder, *wanting):
            process.join(60)
        assert answers == ["kept", *["refused"] * (waiters - 1)]
        assert [process.exitcode for process in wanting] == [0] * waiters
        assert not [path for path in tmp_path.iterdir() if "lease" in path.name]
    seconds = round(time.monotonic() - started, 1)
    report(f"killed holders of leases ({where})", kills=rounds, lost=0, doubled=0, equal=True, seconds=seconds)
