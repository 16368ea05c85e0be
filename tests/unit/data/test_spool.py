from pathlib import Path

import pytest

from rnnlm.data import spool as spool_module
from rnnlm.data.splits import Division, keyed
from rnnlm.data.spool import UnitSpool, divide, key_bytes
from rnnlm.data.units import Unit


def text(number: int, content: str) -> Unit:
    return Unit(f"f:{number}", content, None, "", content, "f", number, 1)


def test_units_come_back_in_order_without_repeated_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_BATCH_ROWS", 7)
    for drop, kept in ((False, 50), (True, 20)):
        spool = UnitSpool(tmp_path / str(drop), is_text=True)
        for number in range(50):
            spool.add(keyed(text(number, str(number % 20)), str))
        assert spool.close(drop_repeated=drop) == 30
        for _ in range(2):
            ids = [row["id"] for batch in spool.batches() for row in batch.to_pylist()]
            assert ids == [f"f:{number}" for number in range(kept)]


def test_batches_of_repeated_units_alone_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_BATCH_ROWS", 2)
    spool = UnitSpool(tmp_path / "text", is_text=True)
    for number, content in enumerate("aaaaba"):
        spool.add(keyed(text(number, content), str))
    assert spool.close(drop_repeated=True) == 4
    assert [batch.column("text").to_pylist() for batch in spool.batches()] == [["a"], ["b"]]


def test_pairs_are_divided_by_their_keys(tmp_path: Path) -> None:
    spool = UnitSpool(tmp_path / "pairs", is_text=False)
    for number in range(40):
        spool.add(keyed(Unit(str(number), f"s{number % 10}", "t", "a,b", f"s{number % 10}\r", "f", number, 1), str))
    spool.close(drop_repeated=False)
    keys = [key_bytes(batch, "key") for batch in spool.batches()]
    division = Division.plan(keys, {"valid": 0.3}, rest="train", seed=0, purpose="splits")
    parts = dict(divide(next(spool.batches()), division))
    assert {split: part.num_rows for split, part in parts.items()} == {"valid": 12, "train": 28}
    assert parts["valid"].schema.names == ["id", "source", "target", "tags", "key", "exact"]
    assert not set(parts["valid"].column("source").to_pylist()) & set(parts["train"].column("source").to_pylist())
    assert parts["train"].column("key") != parts["train"].column("exact")


def test_a_lone_document_is_cut(tmp_path: Path) -> None:
    spool = UnitSpool(tmp_path / "text", is_text=True)
    spool.add(keyed(text(1, "a\nb\nc\nd\n"), str))
    spool.close(drop_repeated=True)
    (batch,) = spool.batches()
    division = Division.plan([key_bytes(batch, "key")], {"test": 0.25}, rest="train", seed=0, purpose="splits")
    assert {split: part.to_pylist()[0]["text"] for split, part in divide(batch, division)} == {
        "train": "a\nb\nc\n",
        "test": "d\n",
    }
    assert [part.to_pylist()[0]["id"] for _, part in divide(batch, division)] == ["f:1", "f:1#test"]
