"""Who holds a lease is told by processes and renewals, never by a clock."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rnnlm.batch import lease as leases
from rnnlm.batch.lease import Holder, LeaseHeldError, LeaseLostError, Locking, current_holder, lease, locking
from rnnlm.errors import RnnlmError, UsageError
from rnnlm.storage import Store

CODE = """
import sys, time
from rnnlm.batch import lease as leases
from rnnlm.storage import Store
folder, seconds, machine, ahead = sys.argv[1], float(sys.argv[2]), sys.argv[3], float(sys.argv[4])
if machine:
    leases._machine = lambda: machine
if ahead:
    real = time.time
    time.time = lambda: real() + ahead
try:
    with leases.lease(Store(folder), seconds=seconds) as held:
        print("held", flush=True)
        sys.stdin.readline()
        held.check()
        print("committed", flush=True)
        sys.stdin.readline()
except leases.RnnlmError as error:
    print(type(error).__name__, error, flush=True)
"""


class Other:
    """Another process that wants the lease: here, or as if it were on another machine, or with another clock."""

    def __init__(self, folder: Path, seconds: float = 60.0, machine: str = "", ahead: float = 0.0) -> None:
        arguments = [str(folder), str(seconds), machine, str(ahead)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> str:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        return self.says()


@pytest.fixture
def others() -> Iterator[Any]:
    made: list[Other] = []

    def make(*arguments: Any, **keywords: Any) -> Other:
        made.append(Other(*arguments, **keywords))
        return made[-1]

    yield make
    for other in made:
        with contextlib.suppress(ProcessLookupError):
            other.process.send_signal(signal.SIGCONT)
        other.process.kill()
        other.process.communicate()


def elsewhere(**changes: Any) -> dict[str, Any]:
    """What a holder on another machine writes."""
    values = {"token": "0" * 32, "host": "elsewhere", "machine": "another", "process": 7, "started": "1"}
    return {**values, "seconds": 0.4, "renewals": 0, **changes}


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with lease(store) as held:
        assert held.holder.process == os.getpid()
        assert current_holder(store) == str(held.holder)
        held.check()
        with pytest.raises(LeaseHeldError, match=f"held by process {os.getpid()} on "), lease(store):
            pass
    assert current_holder(store) is None
    assert store.files() == []


def test_a_lease_is_renewed_while_it_is_held(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with lease(store, seconds=0.3) as held:
        time.sleep(0.6)
        assert store.read_json("lease.json")["renewals"] == held.holder.renewals > 0
        assert store.read_json("lease.json")["token"] == held.holder.token


def test_a_holder_elsewhere_that_renews_is_alive_whatever_the_clocks_say(tmp_path: Path) -> None:
    store, stop = Store(str(tmp_path)), threading.Event()

    def renew() -> None:
        renewals = 0
        while not stop.wait(0.1):
            renewals += 1
            store.write_json("lease.json", elsewhere(renewals=renewals))
            os.utime(tmp_path / "lease.json", (0, 0))  # a clock that is decades behind

    store.write_json("lease.json", elsewhere())
    renewer = threading.Thread(target=renew)
    renewer.start()
    said: list[str] = []
    try:
        with (
            locking(Locking(say=said.append)),
            pytest.raises(LeaseHeldError, match="process 7 on elsewhere"),
            lease(store),
        ):
            pass
    finally:
        stop.set()
        renewer.join()
    assert "process 7 on elsewhere; whether it lives shows within 0.4 s" in said[0]


@pytest.mark.parametrize("content", [json.dumps(elsewhere()), "{broken", '{"token": 1}', "[]"])
def test_what_does_not_change_for_the_length_of_a_lease_is_dead(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 0.4)
    store = Store(str(tmp_path))
    store.write_bytes("lease.json", content.encode())
    future = time.time() + 1e6
    os.utime(tmp_path / "lease.json", (future, future))
    started = time.monotonic()
    with lease(store) as held:
        held.check()
    assert 0.4 <= time.monotonic() - started < 5
    assert store.files() == []


def test_a_killed_process_of_this_machine_holds_nothing(tmp_path: Path, others: Any) -> None:
    store = Store(str(tmp_path))
    other = others(tmp_path)
    assert other.says() == "held"
    with pytest.raises(LeaseHeldError, match=f"held by process {other.process.pid} on "), lease(store):
        pass
    other.process.kill()
    time.sleep(0.3)  # nobody has collected it: it is a zombie
    assert current_holder(store) is None
    with lease(store) as held:
        held.check()
    assert store.files() == []


def test_a_reused_process_id_is_another_process(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with lease(store) as held:
        mine = held.holder
    for started, alive in ((mine.started, True), ("1", False)):
        store.write_json("lease.json", {**mine.__dict__, "started": started})
        assert (current_holder(store) is not None) is alive


def test_of_many_that_find_a_dead_holder_one_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    dead = Holder("0" * 32, "here", leases._machine(), os.getpid(), "1", 60.0)
    kept: list[int] = []
    failed: list[int] = []
    waited: set[int] = set()
    barrier, done = threading.Barrier(8), threading.Event()

    def wait_for_all(slots: Any, root: str, end: Any, original: Any = leases._is_dead) -> bool:
        found = bool(original(slots, root, end))
        if threading.get_ident() not in waited:
            waited.add(threading.get_ident())
            barrier.wait(5)  # all have found it dead before the first takes its place
        return found

    def want() -> None:
        try:
            with lease(store):
                kept.append(1)
                done.wait(10)
        except LeaseHeldError:
            failed.append(1)
        if len(failed) == 7:
            done.set()

    monkeypatch.setattr(leases, "_is_dead", wait_for_all)
    for _ in range(5):
        store.write_bytes("lease.json", leases._bytes(dead))
        kept.clear()
        failed.clear()
        waited.clear()
        done.clear()
        threads = [threading.Thread(target=want) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(kept), len(failed)) == (1, 7)
        assert store.files() == []


def test_who_comes_late_to_a_dead_holder_does_not_disturb_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    dead = Holder("0" * 32, "here", leases._machine(), os.getpid(), "1", 60.0)
    store.write_bytes("lease.json", leases._bytes(dead))
    with contextlib.ExitStack() as stack:

        def meanwhile(slots: Any, root: str, end: Any, original: Any = leases._is_dead) -> bool:
            monkeypatch.setattr(leases, "_is_dead", original)
            with lease(store):
                pass  # somebody else took over, and is done
            stack.enter_context(lease(store))  # and the next one has begun
            return True

        monkeypatch.setattr(leases, "_is_dead", meanwhile)
        with pytest.raises(LeaseHeldError), lease(store):
            pass
        assert store.files() == ["lease.json"]
    assert store.files() == []


def test_a_jumped_clock_changes_nothing(tmp_path: Path, others: Any) -> None:
    for ahead in (3600.0, -3600.0):
        other = others(tmp_path, 3.0, ahead=ahead)
        assert other.says() == "held"
        with pytest.raises(LeaseHeldError), lease(Store(str(tmp_path))):
            pass
        far = others(tmp_path, 0.5, "far away", -ahead)
        assert far.says().startswith("LeaseHeldError"), "it renews every second, and is watched for three"
        assert other.go_on() == "committed"
        other.go_on()
        other.process.wait(10)


def test_a_paused_holder_finds_that_its_lease_was_taken(tmp_path: Path, others: Any) -> None:
    store = Store(str(tmp_path))
    other = others(tmp_path, 1.0, "far away")
    assert other.says() == "held"
    other.process.send_signal(signal.SIGSTOP)
    with lease(store) as held:
        other.process.send_signal(signal.SIGCONT)
        said = other.go_on()
        assert said.startswith("LeaseLostError")
        assert f"process {os.getpid()} on" in said
        other.process.wait(10)
        held.check()
    assert store.files() == []


def test_a_paused_holder_of_this_machine_is_alive(tmp_path: Path, others: Any) -> None:
    other = others(tmp_path, 0.3)
    assert other.says() == "held"
    other.process.send_signal(signal.SIGSTOP)
    time.sleep(0.6)
    with pytest.raises(LeaseHeldError), lease(Store(str(tmp_path))):
        pass
    other.process.send_signal(signal.SIGCONT)
    assert other.go_on() == "committed"


def test_a_lease_whose_files_are_gone_is_lost(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with lease(store, seconds=0.3) as held:
        store.delete("lease.json")
        time.sleep(0.3)
        assert not store.exists("lease.json"), "a lost lease is not renewed"
        with pytest.raises(LeaseLostError, match="another process has taken over"):
            held.check()


def test_a_store_without_exclusive_creation(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow.fs import _MockFileSystem

    store = Store("s3://bucket/x")
    filesystem = _MockFileSystem()
    filesystem.create_dir("x")
    store._remote = (filesystem, "x")
    assert not store.exclusive
    with (
        locking(Locking("required")),
        pytest.raises(UsageError, match=r"--lock required: s3://bucket/x .*--tracking-uri"),
        lease(store),
    ):
        pass
    with locking(Locking("none")), lease(store) as first, lease(store) as second:
        first.check()
        second.check()
        assert store.files() == []
    said: list[str] = []
    with locking(Locking("auto", say=said.append)), lease(store):
        assert "leases are not exclusive here" in said[0]
        with pytest.raises(RnnlmError, match="held by"), lease(store):
            pass
