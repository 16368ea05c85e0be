"""Leases as rows of a database: the same as files of a local folder."""

import threading
import time
from pathlib import Path

import pytest

from rnnlm.batch import lease as leases
from rnnlm.batch.lease import LeaseHeldError, Locking, current_holder, lease, locking
from rnnlm.errors import UnreachableError
from rnnlm.integrations.lock_table import LockTable
from rnnlm.storage import Store


@pytest.fixture
def table(tmp_path: Path) -> LockTable:
    return LockTable(f"sqlite:///{tmp_path}/locks.db")


def test_rows_are_as_files(table: LockTable) -> None:
    rows, others = table.slots("s3://bucket/a"), table.slots("s3://bucket/b")
    assert rows.create("x", b"one")
    assert not rows.create("x", b"two")
    assert rows.read_bytes("x") == b"one"
    with pytest.raises(FileNotFoundError):
        others.read_bytes("x")
    rows.write_bytes("x", b"three")
    others.write_bytes("x", b"nothing to change")
    assert rows.read_bytes("x") == b"three"
    others.delete("x")
    rows.delete("x")
    rows.delete("x")
    with pytest.raises(FileNotFoundError):
        rows.read_bytes("x")


def test_of_many_one_makes_the_row(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/locks.db"
    made: list[bool] = []
    barrier = threading.Barrier(6)

    def create() -> None:
        barrier.wait(10)
        made.append(LockTable(uri).slots("s3://bucket").create("x", b"me"))

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * 5 + [True]


def test_a_lease_of_an_object_store_is_a_row(table: LockTable, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("s3://bucket/store")
    with locking(Locking("required", lambda: table)):
        with lease(store, seconds=0.3) as held:
            time.sleep(0.3)
            assert held.holder.renewals > 0
            held.check()
            with pytest.raises(LeaseHeldError, match=f"held by {held.holder}"), lease(store):
                pass
            monkeypatch.setattr(leases, "_machine", lambda: "another machine")
            with pytest.raises(LeaseHeldError), lease(store):  # it is seen to renew
                pass
        assert current_holder(store) is None
        dead = leases.Holder("0" * 32, "elsewhere", "gone", 1, "1", 0.3)
        table.slots(store.uri).create("lease.json", leases._bytes(dead))
        with lease(store) as held:
            held.check()


def test_a_database_that_does_not_answer(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnreachableError, match="database of locks"):
        LockTable(f"sqlite:///{tmp_path}/file/locks.db")
    with pytest.raises(UnreachableError, match="database of locks"):
        LockTable(f"sqlite:///{tmp_path}")
    LockTable(f"sqlite:///{tmp_path}/new/folder/locks.db")
