from pathlib import Path
from typing import Any

import pytest

from rnnlm.batch import job as jobs
from rnnlm.batch.config import BatchConfig
from rnnlm.batch.job import Job, ModelIdentity, OutputRow
from rnnlm.decoding.config import DecodeConfig
from rnnlm.errors import RnnlmError
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


def test_a_shard_never_spans_two_files() -> None:
    assert make_job().shard_names == ["part-00000", "part-00001", "part-00002"]


def test_the_key_depends_on_model_input_and_effective_settings_only() -> None:
    key = make_job().key
    assert key == make_job(model=ModelIdentity("d" * 64, "demo", "4")).key
    assert key == make_job(decode=DecodeConfig(method="greedy", beam_size=9, batch_tokens=7)).key
    assert key == make_job(batch=BatchConfig(shard_rows=2, in_process_rows=0)).key
    assert key != make_job(model=ModelIdentity("e" * 64, "demo", "3")).key
    assert key != make_job(decode=DecodeConfig(method="greedy", max_length=9)).key
    assert key != make_job(snapshot=()).key
    assert key != make_job(batch=BatchConfig(shard_rows=3)).key


def test_a_job_exists_once_its_manifest_does(tmp_path: Path) -> None:
    job = make_job()
    folder = job.folder(Store(str(tmp_path)))
    jobs.write_part(folder, "part-00000", rows("a", "b"), MODEL)
    with pytest.raises(RnnlmError, match="2 parts are missing, the first is part-00001"):
        jobs.commit(folder, job, "", 0.0)
    jobs.write_part(folder, "part-00001", rows("c", status="rejected"), MODEL)
    jobs.write_part(folder, "part-00002", rows("d"), MODEL)
    assert jobs.manifest(folder) is None
    with pytest.raises(RnnlmError, match="no manifest"):
        list(jobs.read_rows(folder))
    written = jobs.commit(folder, job, "", 1.0)
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
    with pytest.raises(RnnlmError, match="4 rows went in and 3 came out"):
        jobs.commit(folder, job, "", 0.0)


def test_a_broken_manifest_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_json("manifest.json", [])
    with pytest.raises(RnnlmError, match="not a manifest"):
        jobs.manifest(store)
