"""Stores with something wrong: full, read-only, with torn files. Commands are processes of their own, on real mounts."""

import contextlib
import hashlib
import importlib
import json
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

import pytest

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
         "rnnlm.integrations.mlflow_registry", "rnnlm.assemble", "rnnlm.api", "rnnlm.evaluation.plots"]
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
        shared = ["--json", "--store", str(store), "--tracking-uri", f"sqlite:///{self.folder}/mlflow.db"]
        alone = [] if stage == "generate" else ["small.toml", "--workers", "0", "--cpus-per-worker", "1"]
        log = f"{self.folder}/said.txt"
        arguments = (stage, [*alone, *shared, *more], str(self.folder), variables, log)
        process = self.server.Process(target=_work, args=arguments)
        process.start()
        process.join(120)
        if process.is_alive():
            process.kill()
        text = Path(log).read_text()
        last = [line for line in text.splitlines() if line.startswith('{"stage"')]
        assert process.exitcode is not None
        return Reply(process.exitcode, json.loads(last[-1]) if last else {}, text)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database whose tables are made already, which takes MLflow seconds."""
    from rnnlm.integrations.mlflow_tracking import Tracking

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    Tracking(f"sqlite:///{path}")
    return path


@pytest.fixture
def desk(tmp_path: Path, server: ForkServerContext, database: Path) -> Desk:
    return Desk(tmp_path / "desk", server, database)


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A mount; the test is skipped where that is not allowed."""
    folder.mkdir(exist_ok=True)
    try:
        done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"mounting is not allowed: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def state(store: Path) -> dict[str, str]:
    """Digests of what a chain leaves in a store: corpus, tokens, weights; not of what names a run or a time."""
    changing = ("artifact.json", "run.json", "curves.png", "state.json", "checkpoint.json")
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
    desk: Desk, whole: Path, tmp_path: Path, long_form: bool, report: Callable[..., None]
) -> None:
    rooms = {stage: [0, *(4096 * 2**n for n in range(7))] for stage in CHAIN}
    if not long_form:
        rooms = {"ingest": [0, 20_480], "tokenize_corpus": [24_576], "train": [0, 32_768, 57_344]}
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


def test_a_store_that_is_read_only(desk: Desk, whole: Path, tmp_path: Path) -> None:
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


def test_a_torn_shard_of_tokens(desk: Desk, whole: Path) -> None:
    store = desk.folder / "store"
    shutil.copytree(whole, store)
    shutil.rmtree(next(store.glob("experiments/small/train-*")))
    shard = next(store.glob("experiments/small/tokenize_corpus-*/tokens/tokens/train/*.arrow"))
    content = shard.read_bytes()
    for torn in (content[:-1], b"", content[:100] + bytes([content[100] ^ 1]) + content[101:], None):
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
