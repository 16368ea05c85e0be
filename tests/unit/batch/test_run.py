"""Running a batch job: only what is missing is done, and the output does not depend on how often it was stopped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rnnlm.batch import inputs, run
from rnnlm.batch import job as jobs
from rnnlm.batch.config import BatchConfig
from rnnlm.batch.inputs import InputRow, Shard
from rnnlm.batch.job import Job, ModelIdentity
from rnnlm.batch.lease import LeaseHeldError, lease
from rnnlm.batch.run import ShardWork, in_process, run_job, stage_shard, staged_shard
from rnnlm.decoding.config import DecodeConfig
from rnnlm.errors import RnnlmError
from rnnlm.storage import Store

LIMITS = BatchConfig(shard_rows=2)
MODEL = ModelIdentity("d" * 64, "shouter", "1")


class Output:
    def __init__(self, text: str) -> None:
        self.text, self.score, self.truncated = text.upper(), -1.0, False


class Shouter:
    """A generator that counts its batches."""

    task = "translate"

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

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
    manifest = run_job(job, taken, Store(str(lines / "out")), in_process(generator, told.append))
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
    first = run_job(job, taken, output, in_process(_any(Shouter()), _ignore))

    def never(_work: ShardWork, _shards: Iterator[Shard]) -> None:
        raise AssertionError("nothing is missing")

    assert run_job(job, taken, output, never) == first


def test_a_stopped_job_goes_on_and_ends_with_the_same_files(lines: Path) -> None:
    job, taken = prepared(lines)
    whole, stopped = Store(str(lines / "whole")), Store(str(lines / "stopped"))
    run_job(job, taken, whole, in_process(_any(Shouter()), _ignore))

    def breaks(rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job, taken, stopped, in_process(_any(Shouter()), breaks))
    folder = job.folder(stopped)
    assert jobs.manifest(folder) is None
    assert list(jobs.finished(folder)) == ["part-00000"]
    assert not folder.exists("lease.json")
    generator: Any = Shouter()
    run_job(job, taken, stopped, in_process(generator, _ignore))
    assert generator.batches == [["three"], ["four"]]
    assert files(folder) == files(job.folder(whole))


def test_all_parts_without_a_manifest_need_only_the_manifest(lines: Path) -> None:
    job, taken = prepared(lines)
    output = Store(str(lines / "out"))
    run_job(job, taken, output, in_process(_any(Shouter()), _ignore))
    job.folder(output).delete(jobs.MANIFEST_FILE)
    generator: Any = Shouter()
    assert run_job(job, taken, output, in_process(generator, _ignore))["rows"] == 4
    assert generator.batches == []


def test_a_job_that_somebody_works_on_is_left_alone(lines: Path) -> None:
    job, taken = prepared(lines)
    output = Store(str(lines / "out"))
    with lease(job.folder(output)), pytest.raises(LeaseHeldError, match="held by process"):
        run_job(job, taken, output, in_process(_any(Shouter()), _ignore))


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
            work.write(generator, staged_shard(Store(work.folder), name))

    run_job(job, taken, output, elsewhere)
    assert not job.folder(output).exists(run.STAGING_FOLDER)
    assert len(generator.batches) == 3


def _ignore(rows: int) -> None:
    assert rows > 0


def _any(value: object) -> Any:
    return value
