"""`generate`, killed over and over: the rows, the bytes and the rejects of a job that nobody killed.

The command is the real one, with a Ray of its own. A kill is a SIGKILL, of the command with all that it has started or of
one actor, at a random moment or while a file is being written; or the process ends at a crash point of `rnnlm/faults.py`.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient

import rnnlm
from rnnlm import faults

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
OURS = ("RAY_", "RNNLM_", "MLFLOW_", "TUNE_", "GLOO_")
MARK = "RNNLM_TEST"
"""In the environment of a command and of all that it starts, so that all of it is found."""
WAIT_S = 300
NAMES = ("cats", "dogs", "birds", "trees", "houses", "rivers", "stones", "clouds")
WORDS = ("Katzen", "Hunde", "Vögel", "Bäume", "Häuser", "Flüsse", "Steine", "Wolken")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small translator."""
    pairs = [(f"{n} {NAMES[n % 8]}", f"{n} {WORDS[n % 8]}") for n in range(400)]
    sizes = ["model.embedding_size=16", "model.hidden_size=16", "train.max_steps=40", "tokenizer.vocab_size=300"]
    generator = rnnlm.fit(pairs, task="translate", minutes=0.5, overrides=sizes)
    return Path(generator.save(tmp_path_factory.mktemp("model") / "package"))


def write_input(folder: Path, rows: int) -> None:
    """Distinct rows in several files, with blank, over-long and undecodable ones among them."""
    folder.mkdir()
    shares = (0.4, 0.3, 0.2, 0.1)
    number = 0
    for file, share in enumerate(shares):
        lines = []
        for _ in range(int(rows * share)):
            number += 1
            line = f"{number} {NAMES[number % 8]} and {number * 7} {NAMES[number % 5]}".encode()
            if number % 997 == 3:
                line = b"  "
            elif number % 997 == 5:
                line = f"{number} ".encode() + b"stones " * 2_000
            elif number % 997 == 7:
                line = f"{number} ".encode() + b"\xff\xfe cats"
            lines.append(line + b"\n")
        (folder / f"in-{file}.txt").write_bytes(b"".join(lines))


class Job:
    """The command on a folder, and what it has left there."""

    def __init__(self, folder: Path, package: Path, rows: int, *settings: str, ray: bool = True) -> None:
        self.folder = folder
        self.output = folder / "out"
        self.mark = uuid.uuid4().hex
        self.settings = [*settings, f"generate.in_process_rows={0 if ray else 1_000_000}"]
        self.package = package
        self.starts = 0
        folder.mkdir(exist_ok=True)
        if not (folder / "input").exists():
            write_input(folder / "input", rows)

    def command(self, *more: str) -> list[str]:
        workers = ["--workers", "2", "--cpus-per-worker", "1"]
        return [
            sys.executable, "-m", "pipelines.generate", "--model", str(self.package), "--input",
            f"{self.folder}/input/*.txt", "--output", str(self.output), "--store", f"{self.folder}/store", "--json",
            *workers, *more, *self.settings,
        ]  # fmt: skip

    def start(self, *more: str, **variables: str) -> "subprocess.Popen[bytes]":
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        environment = kept | {MARK: self.mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | variables
        self.starts += 1
        with (self.folder / f"log-{self.starts:03d}.txt").open("wb") as log:
            return subprocess.Popen(
                self.command(*more), cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def run(self, *more: str, **variables: str) -> dict[str, Any]:
        """To the end; the JSON line."""
        process = self.start(*more, **variables)
        try:
            code = process.wait(WAIT_S)
        finally:
            self.kill_all()
        line = dict(json.loads(self.said().splitlines()[-1]))
        assert line["exit_code"] == code, self.said()
        return line

    def said(self) -> str:
        return (self.folder / f"log-{self.starts:03d}.txt").read_text()

    def logs(self) -> str:
        """All that its runs have said, their actors too."""
        return "".join(path.read_text() for path in self.folder.glob("store/logs/*.log"))

    def processes(self) -> list[psutil.Process]:
        """What the command has started and still lives, itself included."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found

    def actors(self) -> list[psutil.Process]:
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if any("ShardActor" in word for word in process.cmdline()):
                    found.append(process)
        return found

    def kill_all(self) -> None:
        while processes := self.processes():
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(processes, 10)

    @property
    def run_folder(self) -> Path:
        (folder,) = self.output.glob("run=*")
        return folder

    def count(self) -> int:
        """Parts that are there."""
        return len(list(self.output.glob("run=*/*.parquet")))

    def names(self) -> set[str]:
        """The files of the output, those that are still being written too."""
        return {
            path.relative_to(self.output).as_posix()
            for path in self.output.glob("run=*/**/*")
            if path.is_file() and "lease" not in path.name
        }

    def parts(self) -> dict[str, str]:
        """Parts and the SHA-256 of their bytes."""
        return {path.name: sha256(path.read_bytes()).hexdigest() for path in self.run_folder.glob("*.parquet")}

    def rows(self) -> list[dict[str, Any]]:
        """Rows in the order of the manifest."""
        parts = self.manifest()["parts"]
        return [row for part in parts for row in pq.read_table(self.run_folder / part["file"]).to_pylist()]

    def manifest(self) -> dict[str, Any]:
        return dict(json.loads((self.run_folder / "manifest.json").read_text()))

    def rejects(self) -> str:
        return (self.run_folder / "rejects.jsonl").read_text()

    def write_under_way(self) -> bool:
        """Whether a file is half written, or a part has no ledger entry yet."""
        names = {name.partition("/")[2] for name in self.names()}
        parts = {name.removesuffix(".parquet") for name in names if name.startswith("part-")}
        entries = {
            name.removeprefix("ledger/").removesuffix(".json") for name in names if name.startswith("ledger/part-")
        }
        return bool(parts - entries) or any(".writing-" in name for name in names)

    def sweep(self) -> None:
        """Take away what dead writers have left, so that the next kill is judged by itself."""
        for path in self.output.glob("run=*/**/.writing-*"):
            path.unlink(missing_ok=True)


def equal(job: Job, whole: Job) -> dict[str, int]:
    """Nothing lost, nothing doubled, bytes and rejects equal; the figures."""
    ids, wanted = [row["row_id"] for row in job.rows()], [row["row_id"] for row in whole.rows()]
    lost, doubled = set(wanted) - set(ids), [name for name, count in Counter(ids).items() if count > 1]
    assert (lost, doubled) == (set(), [])
    assert ids == wanted
    assert job.rows() == whole.rows()
    assert job.parts() == whole.parts()
    assert [part["sha256"] for part in job.manifest()["parts"]] == [*dict(sorted(whole.parts().items())).values()]
    assert job.rejects() == whole.rejects()
    assert job.run("--verify")["exit_code"] == 0, job.said()
    return {"lost": len(lost), "doubled": len(doubled), "rows": len(ids)}


class Killer:
    """Starts a job again and again and kills it.

    Args:
        job: the job.
        seed: of the random choices.
        most_wait_s: longest time from the start of work to a kill.
        parts: parts that a job makes before it is killed at work.

    Attributes:
        kills: by kind.
        hits: kills after which a file was half written, or a part had no ledger entry.
    """

    def __init__(self, job: Job, seed: int, most_wait_s: float, parts: int = 1) -> None:
        self.job = job
        self.parts = parts
        self.random = random.Random(seed)
        self.most_wait_s = most_wait_s
        self.kills: Counter[str] = Counter()
        self.hits = 0
        self.process: subprocess.Popen[bytes] | None = None

    def kill(self, kind: str) -> None:
        """One kill: of the `driver` with all that it started, or of an `actor`; `start`, `work` or `write` says when."""
        who, _, when = kind.partition(" in ")
        if when == "start":
            self.end()
            self.process = self.job.start()
            time.sleep(self.random.uniform(0, 12))
        else:
            self.wait_for_work()
        self.job.sweep()
        if when == "write":
            self.until(self.job.write_under_way)
        elif when == "work":
            time.sleep(self.random.uniform(0, self.most_wait_s))
        assert self.running(), "the job was done before the last kill; it needs more rows"
        if who == "actor":
            self.random.choice(self.job.actors()).kill()
        else:
            self.end()
        self.hits += self.job.write_under_way()
        self.kills[kind] += 1

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def wait_for_work(self) -> None:
        """Wait until a run goes on: its actors live, and there are some parts more."""
        if not self.running():
            self.process = self.job.start()
        self.until(lambda: len(self.job.actors()) == 2)
        before = self.job.count()
        self.until(lambda: self.job.count() >= before + self.parts)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition() and self.running():
            assert time.monotonic() < deadline, self.job.said()
            time.sleep(0.001)

    def end(self) -> None:
        """Kill all there is."""
        if self.process is not None:
            self.job.kill_all()
            self.process.wait(10)
            self.process = None


def schedule(drivers: int, actors: int, seed: int) -> list[str]:
    """Kinds of kills in a random order."""
    kinds = ["driver in write", "driver in work", "driver in start", "driver in write"]
    found = [kinds[number % 4] for number in range(drivers)]
    found += [("actor in write", "actor in work")[number % 2] for number in range(actors)]
    random.Random(seed).shuffle(found)
    return found


def damage(job: Job) -> int:
    """Change what has been written: a part, a ledger entry, and a part that is gone; how many."""
    entries = sorted(job.run_folder.glob("ledger/*.json"))
    flipped, cut, gone = (job.run_folder / f"{entry.stem}.parquet" for entry in entries[:3])
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    entry = job.run_folder / "ledger" / f"{cut.stem}.json"
    entry.write_bytes(entry.read_bytes()[:-20])
    gone.unlink()
    return 3


@pytest.mark.timeout(3_000)
def test_a_job_that_is_killed_over_and_over_is_as_one_that_was_not(
    package: Path, tmp_path: Path, long_form: bool, report: Callable[..., None]
) -> None:
    rows, drivers, actors = (20_000, 14, 16) if long_form else (1_200, 1, 1)
    settings = [f"generate.shard_rows={100 if long_form else 40}", "decode.beam_size=4", "decode.max_length=40"]
    whole = Job(tmp_path / "whole", package, rows, *settings, ray=long_form)
    clock = time.monotonic()
    assert whole.run()["exit_code"] == 0, whole.said()
    undisturbed = time.monotonic() - clock
    killed = Job(tmp_path / "killed", package, rows, *settings)
    killer = Killer(killed, seed=7, most_wait_s=0.5, parts=1 if long_form else 4)
    clock = time.monotonic()
    try:
        for kind in schedule(drivers, actors, seed=7):
            killer.kill(kind)
    finally:
        killer.end()
    damaged = damage(killed)
    assert killed.run()["exit_code"] == 0, killed.said()
    seconds = time.monotonic() - clock

    assert killed.logs().count("the part is made again") >= damaged
    figures = equal(killed, whole)
    assert figures["rows"] == rows
    report(
        "generate: kills of the command and of actors", kills=sum(killer.kills.values()), by_kind=dict(killer.kills),
        within_a_write=killer.hits, damaged=damaged, equal=True, seconds=round(seconds, 1),
        undisturbed_seconds=round(undisturbed, 1), parts=len(killed.parts()), **figures,
    )  # fmt: skip


@pytest.mark.timeout(900)
def test_rows_that_kill_or_hang_their_actor_are_rejected_and_no_others(
    package: Path, tmp_path: Path, long_form: bool, report: Callable[..., None]
) -> None:
    rows = 2_000 if long_form else 200
    settings = [f"generate.shard_rows={rows // 4}", "generate.batch_timeout_s=8", "decode.max_length=20"]
    whole = Job(tmp_path / "whole", package, rows, *settings, ray=False)
    assert whole.run()["exit_code"] == 0, whole.said()
    poisoned = Job(tmp_path / "poisoned", package, rows, *settings)
    lines = (poisoned.folder / "input" / "in-0.txt").read_text(errors="replace").splitlines()
    poison = {"kill": lines[20]} | ({"hang": lines[rows // 4 + 10]} if long_form else {})
    clock = time.monotonic()
    line = poisoned.run(**{faults.POISON_VARIABLE: "\n".join(f"{kind}:{text}" for kind, text in poison.items())})
    seconds = time.monotonic() - clock

    assert line["exit_code"] == 0, poisoned.said()
    reasons = {row["source"]: row["reason"] for row in poisoned.rows() if row["status"] == "rejected"}
    assert reasons[poison["kill"]] == "the process that decoded it was ended by SIGKILL, 3 times"
    assert not long_form or reasons[poison["hang"]] == "decoding it took longer than 8 s, 3 times"
    others = [row for row in poisoned.rows() if row["source"] not in poison.values()]
    assert others == [row for row in whole.rows() if row["source"] not in poison.values()]
    assert len(poisoned.rows()) == rows
    assert poisoned.run("--verify")["exit_code"] == 0, poisoned.said()
    report(
        "generate: rows that kill or hang their actor", kills=len(poison), lost=0, doubled=0, equal=True, rows=rows,
        seconds=round(seconds, 1),
    )  # fmt: skip


@pytest.mark.timeout(600)
def test_actors_that_end_again_and_again(
    package: Path, tmp_path: Path, long_form: bool, report: Callable[..., None]
) -> None:
    if not long_form:
        pytest.skip("minutes of starting actors")
    settings = ["generate.shard_rows=100", "decode.max_length=20"]
    whole = Job(tmp_path / "whole", package, 400, *settings, ray=False)
    assert whole.run()["exit_code"] == 0, whole.said()
    crashed = Job(tmp_path / "crashed", package, 400, *settings)
    clock = time.monotonic()
    line = crashed.run(**{faults.VARIABLE: "part.written@2"})
    assert line["exit_code"] == 0, crashed.said()  # each life of an actor does one shard
    assert "crash point part.written@2" in crashed.logs()
    equal(crashed, whole)
    seconds = time.monotonic() - clock

    hopeless = Job(tmp_path / "hopeless", package, 400, *settings)
    clock = time.monotonic()
    line = hopeless.run(**{faults.VARIABLE: "part.written@1"})
    assert line["exit_code"] == 1
    assert "end before they are done" in line["error"]
    gave_up = time.monotonic() - clock
    assert hopeless.run()["exit_code"] == 0, hopeless.said()
    figures = equal(hopeless, whole)
    report(
        "generate: actors that end between each part and its ledger entry", equal=True, seconds=round(seconds, 1),
        gave_up_after_s=round(gave_up, 1), **figures,
    )  # fmt: skip


def test_of_two_commands_one_works_and_the_other_names_it(
    package: Path, tmp_path: Path, report: Callable[..., None]
) -> None:
    first, second = (Job(tmp_path / "one", package, 1_500, "decode.beam_size=8", ray=False) for _ in range(2))
    second.starts = 1
    process = first.start()
    try:
        while not list(first.output.glob("run=*/lease*")):
            assert process.poll() is None, first.said()
            time.sleep(0.01)
        psutil.Process(process.pid).suspend()  # on a slow machine it would be done before the other has started
        line = second.run()
        psutil.Process(process.pid).resume()
        assert line["exit_code"] == 1
        assert f"held by process {process.pid} on " in line["error"]
        assert process.wait(WAIT_S) == 0, first.said()
    finally:
        first.kill_all()
    manifest = first.manifest()
    assert second.run()["skipped"] is True
    assert first.manifest() == manifest
    report("generate: two commands, one job", lost=0, doubled=0, equal=True, rows=manifest["rows"])


@pytest.mark.timeout(900)
def test_a_job_that_dies_at_its_end_or_when_it_is_made_again(
    package: Path, tmp_path: Path, report: Callable[..., None]
) -> None:
    settings = ["generate.shard_rows=40", "decode.max_length=10", "decode.method=greedy"]
    job = Job(tmp_path / "job", package, 100, *settings, ray=False)

    def dies(point: str, *more: str) -> None:
        assert job.start(*more, **{faults.VARIABLE: point}).wait(WAIT_S) == faults.EXIT_CODE, job.said()

    def statuses() -> list[str]:
        uri = f"sqlite:///{job.folder}/store/mlflow.db"
        client = MlflowClient(uri, uri)
        (found,) = [each for each in client.search_experiments() if each.name == "package/batch"]
        return [run.info.status for run in client.search_runs([found.experiment_id])]

    dies("batch.committed@1")
    assert statuses() == ["RUNNING"]
    assert job.run()["skipped"] is True, job.said()
    assert statuses() == ["FINISHED"]
    whole, manifest = job.parts(), job.manifest()

    dies("part.written@2", "--force")
    assert job.run()["exit_code"] == 0, job.said()
    again = job.manifest()
    assert again["finished"] > manifest["finished"]
    assert job.parts() == whole
    assert again["parts"] == manifest["parts"]
    assert statuses() == ["FINISHED"] * 2
    assert job.run("--verify")["exit_code"] == 0, job.said()
    report(
        "generate: killed at its end, and when made again", kills=2, lost=0, doubled=0, equal=True, rows=again["rows"]
    )


@pytest.fixture
def small_disk(tmp_path: Path, mounted: Callable[..., AbstractContextManager[Path]]) -> Iterator[Path]:
    """A disk of 400 kB."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=400k", "rnnlm") as disk:
        yield disk


@pytest.mark.timeout(600)
@pytest.mark.parametrize("ray", [False, True])
def test_a_full_disk_is_said_and_the_rerun_goes_on(
    ray: bool, package: Path, small_disk: Path, tmp_path: Path, long_form: bool, report: Callable[..., None]
) -> None:
    if not long_form:
        pytest.skip("half a minute of commands")
    settings = ["generate.shard_rows=100", "decode.max_length=10", "decode.method=greedy"]
    whole = Job(tmp_path / "whole", package, 4_000, *settings, ray=ray)
    assert whole.run()["exit_code"] == 0, whole.said()
    cramped = Job(tmp_path / "cramped", package, 4_000, *settings, ray=ray)
    cramped.output = small_disk / "out"
    clock = time.monotonic()
    line = cramped.run()
    assert line["exit_code"] == 1, cramped.said()
    assert "No space left on device" in line["error"]
    assert not list(small_disk.rglob("manifest.json"))
    parts = cramped.count()
    assert parts
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert cramped.run()["exit_code"] == 0, cramped.said()
    figures = equal(cramped, whole)
    report(
        f"generate: a full disk, {'actors' if ray else 'in process'}", equal=True, parts_before=parts,
        seconds=round(time.monotonic() - clock, 1), **figures,
    )  # fmt: skip
