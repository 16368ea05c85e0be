from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rnnlm.batch import job as jobs
from rnnlm.batch.config import BatchConfig
from rnnlm.batch.job import Job, ModelIdentity, OutputRow
from rnnlm.decoding.config import DecodeConfig
from rnnlm.errors import RnnlmError, UnreachableError
from rnnlm.storage import Store

MODEL = ModelIdentity("d" * 64, "demo", "3")


def make_job(**changes: Any) -> Job:
    values: dict[str, Any] = {
        "model": MODEL,
        "snapshot": ({"name": "a.txt", "sha256": "1", "rows": 3}, {"name": "b.txt", "sha256": "2", "rows": 1}),
        "decode": DecodeConfig(method="greedy"),
        "batch": BatchConfig(shard_rows=2),
    }
    return Job(**values | changes)


def rows(*ids: str, status: str = "ok") -> list[OutputRow]:
    return [OutputRow(name, f"s {name}", f"o {name}", -0.5, status, None if status == "ok" else "why") for name in ids]


def held() -> None:
    """The lease is still ours."""


def whole(folder: Path) -> tuple[Job, Store]:
    """A job all of whose parts are there."""
    job = make_job()
    store = job.folder(Store(str(folder)))
    jobs.write_part(store, "part-00000", rows("a", "b"), MODEL)
    jobs.write_part(store, "part-00001", rows("c", status="rejected"), MODEL)
    jobs.write_part(store, "part-00002", rows("d"), MODEL)
    return job, store


def test_a_shard_never_spans_two_files() -> None:
    assert make_job().shard_names == ["part-00000", "part-00001", "part-00002"]


def test_the_key_depends_on_model_input_and_effective_settings_only() -> None:
    key = make_job().key
    assert key == make_job(model=ModelIdentity("d" * 64, "demo", "4")).key
    assert key == make_job(decode=DecodeConfig(method="greedy", beam_size=9, batch_tokens=7)).key
    assert key == make_job(batch=BatchConfig(shard_rows=2, in_process_rows=0, batch_timeout_s=9.0)).key
    assert key == make_job(batch=BatchConfig(shard_rows=2, max_reject_share=0.1, max_flagged_share=0.2)).key
    assert key != make_job(model=ModelIdentity("e" * 64, "demo", "3")).key
    assert key != make_job(decode=DecodeConfig(method="greedy", max_length=9)).key
    assert key != make_job(snapshot=()).key
    assert key != make_job(batch=BatchConfig(shard_rows=3)).key


def test_a_job_exists_once_its_manifest_does(tmp_path: Path) -> None:
    job = make_job()
    folder = job.folder(Store(str(tmp_path)))
    jobs.write_part(folder, "part-00000", rows("a", "b"), MODEL)
    with pytest.raises(RnnlmError, match="2 parts are missing, the first is part-00001"):
        jobs.commit(folder, job, "", 0.0, held)
    jobs.write_part(folder, "part-00001", rows("c", status="rejected"), MODEL)
    jobs.write_part(folder, "part-00002", rows("d"), MODEL)
    assert jobs.manifest(folder) is None
    with pytest.raises(RnnlmError, match="no manifest"):
        list(jobs.read_rows(folder))
    written = jobs.commit(folder, job, "", 1.0, held)
    assert written == jobs.manifest(folder)
    assert written["by_status"] == {"ok": 3, "rejected": 1}
    read = list(jobs.read_rows(folder))
    assert [row["row_id"] for row in read] == ["a", "b", "c", "d"]
    assert read[0] == {
        "row_id": "a", "source": "s a", "output": "o a", "score": -0.5, "status": "ok", "reason": None,
        "model_name": "demo", "model_version": "3",
    }  # fmt: skip
    assert len(list(jobs.read_rows(folder, limit=2))) == 2
    assert folder.read_bytes("rejects.jsonl") == b'{"reason": "why", "row_id": "c"}\n'


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    first = jobs.write_part(store, "part-00000", rows("a", "b"), MODEL)
    second = jobs.write_part(store.child("other"), "part-00000", rows("a", "b"), MODEL)
    assert first == second


def test_lost_rows_are_never_committed(tmp_path: Path) -> None:
    job = make_job()
    folder = job.folder(Store(str(tmp_path)))
    for name in job.shard_names:
        jobs.write_part(folder, name, rows("a"), MODEL)
    with pytest.raises(RnnlmError, match="1 parts are missing, the first is part-00000"):
        jobs.commit(folder, job, "", 0.0, held)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _other_reason(path: Path) -> None:
    path.write_text(path.read_text().replace("why", "because"))


@pytest.mark.parametrize("change", [Path.unlink, _cut, _flip])
@pytest.mark.parametrize("name", ["part-00001.parquet", "ledger/part-00001.json"])
def test_a_part_or_an_entry_that_was_changed_is_missing(
    name: str, change: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job, folder = whole(tmp_path)
    assert list(jobs.finished(folder, job)) == job.shard_names
    change(Path(folder.path(name)))
    assert list(jobs.finished(folder, job)) == ["part-00000", "part-00002"]
    assert ("the part is made again" in caplog.text) == (change is not Path.unlink or "parquet" in name)
    with pytest.raises(RnnlmError, match="1 parts are missing, the first is part-00001"):
        jobs.commit(folder, job, "", 0.0, held)
    assert jobs.manifest(folder) is None


@pytest.mark.parametrize("value", [[], {}, {"name": "part-00001"}, 3, None])
def test_an_entry_of_another_form_is_no_entry(value: Any, tmp_path: Path) -> None:
    job, folder = whole(tmp_path)
    folder.write_json("ledger/part-00001.json", value)
    assert "part-00001" not in jobs.finished(folder, job)


def test_a_reason_that_was_changed_is_noticed(tmp_path: Path) -> None:
    job, folder = whole(tmp_path)
    _other_reason(Path(folder.path("ledger/part-00001.json")))
    assert "part-00001" not in jobs.finished(folder, job)


def test_a_store_that_is_away_is_not_a_damaged_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, folder = whole(tmp_path)

    def away(self: Store, name: str) -> bytes:
        raise UnreachableError("away")

    monkeypatch.setattr(Store, "read_bytes", away)
    with pytest.raises(UnreachableError):
        jobs.finished(folder, job)


def test_who_has_lost_the_lease_commits_nothing(tmp_path: Path) -> None:
    job, folder = whole(tmp_path)

    def lost() -> None:
        raise RnnlmError("somebody else works on it")

    with pytest.raises(RnnlmError, match="somebody else"):
        jobs.commit(folder, job, "", 0.0, lost)
    assert not folder.exists("manifest.json")
    assert not folder.exists("rejects.jsonl")


def test_a_broken_manifest_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_json("manifest.json", [])
    with pytest.raises(RnnlmError, match="not a manifest"):
        jobs.manifest(store)
