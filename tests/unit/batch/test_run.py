"""Running a batch job: only what is missing is done, and the output does not depend on how often it was stopped."""

import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from rnnlm.batch import inputs, run
from rnnlm.batch import job as jobs
from rnnlm.batch.apart import NoProcessError
from rnnlm.batch.config import BatchConfig
from rnnlm.batch.here import Decoded, Here
from rnnlm.batch.inputs import InputRow, Shard
from rnnlm.batch.job import Job, ModelIdentity
from rnnlm.batch.lease import LeaseHeldError, LeaseLostError, lease
from rnnlm.batch.run import ShardWork, Worker, in_process, run_job, stage_shard, staged_shard
from rnnlm.decoding.config import DecodeConfig
from rnnlm.errors import RnnlmError
from rnnlm.storage import Store

LIMITS = BatchConfig(shard_rows=2)
PACKAGE = Path("/package")
MODEL = ModelIdentity("d" * 64, "shouter", "1")


class Output:
    def __init__(self, text: str) -> None:
        self.text, self.score, self.truncated = text.upper(), -1.0, False


class Shouter:
    """A generator that counts its batches."""

    task = "translate"

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def decoder(self, decode: DecodeConfig) -> None:
        """Every precision is there."""

    def plan(self, texts: list[str], decode: DecodeConfig) -> list[list[int]]:
        return [list(range(len(texts)))]

    def generate(self, texts: list[str], decode: DecodeConfig, keys: list[str]) -> list[Output]:
        self.batches.append(texts)
        return [Output(text) for text in texts]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "b.txt").write_text("four\n")
    return tmp_path


def prepared(folder: Path) -> tuple[Job, inputs.Snapshot]:
    taken = inputs.snapshot(["*.txt"], folder, LIMITS)
    return Job(MODEL, taken.plain(), DecodeConfig(), LIMITS), taken


def files(store: Store) -> dict[str, bytes]:
    return {name: store.read_bytes(name) for name in store.files() if name.endswith(".parquet")}


def test_every_row_comes_out_once_and_in_order(lines: Path) -> None:
    job, taken = prepared(lines)
    generator: Any = Shouter()
    told: list[int] = []
    manifest = run_job(job, taken, Store(str(lines / "out")), in_process(worker(generator), told.append))
    folder = job.folder(Store(str(lines / "out")))
    assert [row["output"] for row in jobs.read_rows(folder)] == ["ONE", "TWO", "THREE", "FOUR"]
    assert [row["row_id"] for row in jobs.read_rows(folder)] == ["a.txt:1", "a.txt:2", "a.txt:3", "b.txt:1"]
    assert (manifest["rows"], manifest["by_status"], told) == (4, {"ok": 4}, [2, 1, 1])
    assert manifest["seconds"] >= 0
    assert generator.batches == [["one", "two"], ["three"], ["four"]]
    assert not folder.exists("lease.json")


def test_a_finished_job_is_not_done_again(lines: Path) -> None:
    job, taken = prepared(lines)
    output = Store(str(lines / "out"))
    first = run_job(job, taken, output, in_process(worker(Shouter()), _ignore))

    def never(_work: ShardWork, _shards: Iterator[Shard]) -> None:
        raise AssertionError("nothing is missing")

    assert run_job(job, taken, output, never) == first


def test_a_stopped_job_goes_on_and_ends_with_the_same_files(lines: Path) -> None:
    job, taken = prepared(lines)
    whole, stopped = Store(str(lines / "whole")), Store(str(lines / "stopped"))
    run_job(job, taken, whole, in_process(worker(Shouter()), _ignore))

    def breaks(rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job, taken, stopped, in_process(worker(Shouter()), breaks))
    folder = job.folder(stopped)
    assert jobs.manifest(folder) is None
    assert list(jobs.finished(folder, job)) == ["part-00000"]
    assert not folder.exists("lease.json")
    generator: Any = Shouter()
    run_job(job, taken, stopped, in_process(worker(generator), _ignore))
    assert generator.batches == [["three"], ["four"]]
    assert files(folder) == files(job.folder(whole))


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("moment", ["ledger half gone", "ledger gone", "manifest gone", "one part", "all parts"])
def test_a_job_that_is_done_anew_and_killed_on_the_way_ends_whole(
    lines: Path, moment: str, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, taken = prepared(lines)
    output = Store(str(lines / "out"))
    folder = job.folder(output)
    first = run_job(job, taken, output, in_process(worker(Shouter()), _ignore))
    whole = files(folder)
    delete = Store.delete

    def dies(self: Store, name: str) -> None:
        if name == jobs.LEDGER_FOLDER and moment == "ledger half gone":
            delete(self, f"{name}/part-00000.json")
            raise Killed
        if name == jobs.MANIFEST_FILE and moment == "ledger gone":
            raise Killed
        delete(self, name)
        if name == jobs.MANIFEST_FILE and moment == "manifest gone":
            raise Killed

    def advance(rows: int) -> None:
        if moment == "one part":
            raise Killed

    def commit(*_: object) -> None:
        raise Killed

    generator, later = Shouter(), Shouter()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete", dies)
        patch.setattr(jobs, "commit", commit)
        with pytest.raises(Killed):
            run_job(job, taken, output, in_process(worker(generator), advance), anew=True)
    stands = moment in ("ledger half gone", "ledger gone")
    assert jobs.manifest(folder) == (first if stands else None)

    manifest = run_job(job, taken, output, in_process(worker(later), _ignore), anew=again)
    assert len(generator.batches) + len(later.batches) == (0 if stands and not again else 3)
    assert manifest == jobs.manifest(folder)
    assert (manifest == first) == (stands and not again)
    assert files(folder) == whole
    assert [row["output"] for row in jobs.read_rows(folder)] == ["ONE", "TWO", "THREE", "FOUR"]


def test_a_job_is_done_anew_only_under_the_lease(lines: Path) -> None:
    job, taken = prepared(lines)
    output = Store(str(lines / "out"))
    first = run_job(job, taken, output, in_process(worker(Shouter()), _ignore))
    with lease(job.folder(output)), pytest.raises(LeaseHeldError, match="held by process"):
        run_job(job, taken, output, in_process(worker(Shouter()), _ignore), anew=True)
    assert jobs.manifest(job.folder(output)) == first
    assert list(jobs.finished(job.folder(output), job)) == job.shard_names


def test_all_parts_without_a_manifest_need_only_the_manifest(lines: Path) -> None:
    job, taken = prepared(lines)
    output = Store(str(lines / "out"))
    run_job(job, taken, output, in_process(worker(Shouter()), _ignore))
    job.folder(output).delete(jobs.MANIFEST_FILE)
    generator: Any = Shouter()
    assert run_job(job, taken, output, in_process(worker(generator), _ignore))["rows"] == 4
    assert generator.batches == []


def test_a_job_that_somebody_works_on_is_left_alone(lines: Path) -> None:
    job, taken = prepared(lines)
    output = Store(str(lines / "out"))
    with lease(job.folder(output)), pytest.raises(LeaseHeldError, match="held by process"):
        run_job(job, taken, output, in_process(worker(Shouter()), _ignore))


def test_shards_for_workers_elsewhere_come_back_as_they_were(tmp_path: Path) -> None:
    folder = Store(str(tmp_path))
    shard = Shard("part-00007", [InputRow("a:1", "text ü"), InputRow("a:2", None, "not valid UTF-8")])
    assert stage_shard(folder, shard) == "part-00007"
    assert staged_shard(folder, "part-00007") == shard
    with pytest.raises(RnnlmError, match="the input of part-00008 is gone; run the command again"):
        staged_shard(folder, "part-00008")


def test_staged_input_is_removed_at_the_end(lines: Path) -> None:
    job, taken = prepared(lines)
    output = Store(str(lines / "out"))
    generator: Any = Shouter()

    def elsewhere(work: ShardWork, shards: Iterator[Shard]) -> None:
        for name in [stage_shard(Store(work.folder), shard) for shard in shards]:
            work.write(worker(generator), staged_shard(Store(work.folder), name))

    run_job(job, taken, output, elsewhere)
    assert not job.folder(output).exists(run.STAGING_FOLDER)
    assert len(generator.batches) == 3


def test_a_part_that_was_torn_is_made_again(lines: Path) -> None:
    job, taken = prepared(lines)
    output = Store(str(lines / "out"))
    folder = job.folder(output)

    def torn(work: ShardWork, shards: Iterator[Shard]) -> None:
        in_process(worker(Shouter()), _ignore)(work, shards)
        if not torn_before:
            torn_before.append(True)
            folder.write_bytes("part-00001.parquet", b"half")

    torn_before: list[bool] = []
    manifest = run_job(job, taken, output, torn)
    whole = run_job(job, taken, Store(str(lines / "whole")), in_process(worker(Shouter()), _ignore))
    assert [part["sha256"] for part in manifest["parts"]] == [part["sha256"] for part in whole["parts"]]
    assert [sha256(data).hexdigest() for data in files(folder).values()] == [part["sha256"] for part in whole["parts"]]


def test_a_store_that_tears_every_part_ends_the_job(lines: Path) -> None:
    job, taken = prepared(lines)
    folder = job.folder(Store(str(lines / "out")))
    rounds: list[int] = []

    def torn(work: ShardWork, shards: Iterator[Shard]) -> None:
        in_process(worker(Shouter()), _ignore)(work, shards)
        rounds.append(1)
        folder.write_bytes("part-00001.parquet", b"half")

    with pytest.raises(RnnlmError, match="1 parts are missing, the first is part-00001"):
        run_job(job, taken, Store(str(lines / "out")), torn)
    assert len(rounds) == run.ROUNDS
    assert jobs.manifest(folder) is None


def test_a_job_that_another_process_has_finished_meanwhile_is_not_committed_again(
    lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, taken = prepared(lines)
    output = Store(str(lines / "out"))
    first = run_job(job, taken, output, in_process(worker(Shouter()), _ignore))
    answers = [None, first]
    monkeypatch.setattr(run.jobs, "manifest", lambda _: answers.pop(0))
    before = files(job.folder(output))
    assert run_job(job, taken, output, in_process(worker(Shouter()), _ignore)) == first
    assert files(job.folder(output)) == before


def test_who_lost_the_lease_commits_nothing(lines: Path) -> None:
    job, taken = prepared(lines)
    output = Store(str(lines / "out"))
    folder = job.folder(output)

    def paused(work: ShardWork, shards: Iterator[Shard]) -> None:
        in_process(worker(Shouter()), _ignore)(work, shards)
        folder.delete("lease.json")

    with pytest.raises(LeaseLostError):
        run_job(job, taken, output, paused)
    assert jobs.manifest(folder) is None


def mark(job: Job, output: Store, shard: str) -> None:
    """What a process leaves that dies while it works on a shard."""
    job.folder(output).write_json(f"{run.WORKING_FOLDER}/{shard}.json", {})


def test_a_shard_on_which_a_process_died_is_made_apart(lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, taken = prepared(lines)
    output = Store(str(lines / "out"))
    mark(job, output, "part-00001")
    made: list[list[str]] = []

    class Elsewhere(Here):
        def __init__(self, package: Path, decode: DecodeConfig, limit_s: float, threads: int) -> None:
            assert package == PACKAGE
            assert limit_s == LIMITS.batch_timeout_s
            super().__init__(_any(Shouter()), decode)

        def __enter__(self) -> "Elsewhere":
            return self

        def __exit__(self, *_: object) -> None: ...

        def decode(self, texts: Sequence[str], keys: Sequence[str]) -> Decoded:
            made.append(list(texts))
            return super().decode(texts, keys)

    monkeypatch.setattr(run, "Apart", Elsewhere)
    generator = Shouter()
    run_job(job, taken, output, in_process(worker(generator), _ignore))
    assert made == [["three"]]
    assert generator.batches == [["one", "two"], ["four"]]
    assert not job.folder(output).exists(run.WORKING_FOLDER)


def test_an_error_leaves_no_mark(lines: Path) -> None:
    job, taken = prepared(lines)
    output = Store(str(lines / "out"))

    class Interrupted(Shouter):
        def generate(self, texts: list[str], decode: DecodeConfig, keys: list[str]) -> list[Output]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job, taken, output, in_process(worker(Interrupted()), _ignore))
    assert job.folder(output).files(run.WORKING_FOLDER) == []


def test_a_batch_that_takes_too_long_is_left_to_a_process_apart(lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Shouter):
        def generate(self, texts: list[str], decode: DecodeConfig, keys: list[str]) -> list[Output]:
            time.sleep(10)
            raise AssertionError("it was not told")

    work = ShardWork(str(lines), DecodeConfig(), LIMITS.model_copy(update={"batch_timeout_s": 0.05}), MODEL)

    def apart(*_: object) -> Any:
        raise NoProcessError("asked for")

    monkeypatch.setattr(run, "Apart", apart)
    with pytest.raises(NoProcessError):
        work.write(worker(Slow()), Shard("part-00000", [InputRow("1", "one")]))


def worker(generator: Any) -> Worker:
    return Worker(generator, PACKAGE)


def _ignore(rows: int) -> None:
    assert rows > 0


def _any(value: object) -> Any:
    return value
