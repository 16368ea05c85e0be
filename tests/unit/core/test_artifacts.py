from pathlib import Path

import pytest

from rnnlm import artifacts
from rnnlm.artifacts import Record
from rnnlm.errors import RnnlmError
from rnnlm.storage import Store


def write(store: Store, stage: str, settings: dict[str, int]) -> Record:
    identity = artifacts.identity(stage, settings, {})
    return artifacts.write_record(
        artifacts.folder(store, "exp", stage, identity), Record(stage, "exp", identity, settings, {}, {"x": "y"})
    )


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    record = write(store, "train", {"a": 1})
    assert artifacts.read_record(record.store) == record
    assert record.created
    assert record.format_number == artifacts.FORMAT_NUMBERS["train"]


def test_records_are_newest_first_and_of_one_stage(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    first, second = write(store, "train", {"a": 1}), write(store, "train", {"a": 2})
    write(store, "tokenize_corpus", {"a": 3})
    assert [record.digest for record in artifacts.records(store, "exp", "train")] == [second.digest, first.digest]
    assert len(artifacts.records(store, "exp", "tokenize_corpus")) == 1
    assert artifacts.records(store, "other", "train") == []


def test_without_its_record_a_stage_has_not_run(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    folder = artifacts.folder(store, "exp", "train", "0" * 64)
    folder.write_bytes("weights", b"...")
    assert artifacts.read_record(folder) is None
    assert artifacts.records(store, "exp", "train") == []


def test_a_file_that_is_no_record_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_json(artifacts.RECORD_FILE, {"unknown": 1})
    with pytest.raises(RnnlmError, match=r"artifact\.json: not a record"):
        artifacts.read_record(store)


def test_identity_depends_on_settings_inputs_and_stage() -> None:
    base = artifacts.identity("train", {"a": 1}, {"tokens": "d"})
    assert base == artifacts.identity("train", {"a": 1}, {"tokens": "d"})
    assert (
        len(
            {
                base,
                artifacts.identity("train", {"a": 2}, {"tokens": "d"}),
                artifacts.identity("train", {"a": 1}, {"tokens": "e"}),
                artifacts.identity("tune", {"a": 1}, {"tokens": "d"}),
            }
        )
        == 4
    )


def test_commit_is_empty_where_git_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert artifacts.git_commit() == ""
