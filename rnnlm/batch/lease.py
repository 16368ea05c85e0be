"""A lease on a name in a store: one holder at a time, and the place of a dead holder is taken over.

No clock of one host is ever compared with another's. Whether a holder on this machine lives is asked of its process; one
elsewhere is watched for as long as its lease lasts, by the waiter's own clock: it lives if it renews in that time.

    lease.json             the first holder, and how often it has renewed its lease
    lease.TOKEN.json       who took over from the holder TOKEN, which was dead

A place is taken by creating a file where none may be, and only its holder writes it again. So of two that find the same
holder dead, one comes next. The last in this chain holds the lease; who releases it deletes the chain, the first file first.
Where a store cannot create exclusively, rows of a database do the same (`locking`).
"""

import contextlib
import hashlib
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import psutil

from rnnlm import faults
from rnnlm.errors import RnnlmError, UsageError
from rnnlm.storage import Store

LEASE_S = 60.0
"""Seconds for which a lease holds without being renewed."""
LEASE_FILE = "lease.json"
MODES = ("auto", "required", "none")
"""`required` refuses a store on which two could hold one lease; `auto` only warns; `none` takes no lease."""
_ATTEMPTS = 5


class LeaseHeldError(RnnlmError):
    """Somebody else holds the lease."""


class LeaseLostError(RnnlmError):
    """The lease was taken over, as its holder did not renew it in time."""


class Slots(Protocol):
    """Named values that can be created exclusively: a local folder is one."""

    def create(self, name: str, data: bytes) -> bool:
        """Write a value only where none is; False where one is."""

    def read_bytes(self, name: str) -> bytes:
        """A value; FileNotFoundError where none is."""

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a value, whatever is there."""

    def delete(self, name: str) -> None:
        """Delete a value, if there is one."""


class LockTable(Protocol):
    """A database for the leases of stores that cannot create exclusively."""

    def slots(self, folder: str) -> Slots:
        """The slots of one folder."""


@dataclass(frozen=True)
class Locking:
    """How leases are taken in this process.

    Attributes:
        mode: one of `MODES`.
        table: for stores that cannot create exclusively; makes the table when it is first called.
        say: tells people that something is waited for, or is not sure.
    """

    mode: str = "auto"
    table: Callable[[], LockTable] | None = None
    say: Callable[[str], None] = lambda _: None


_locking = Locking()


@contextlib.contextmanager
def locking(given: Locking) -> Iterator[None]:
    """All leases that are taken while the block runs are taken like this."""
    global _locking
    before, _locking = _locking, given
    try:
        yield
    finally:
        _locking = before


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        token: of this holding alone.
        host: name, for people.
        machine: host, boot and process namespace in which `process` means something.
        process: id.
        started: when the process began, in units of its machine: another process may get the same id later.
        seconds: how long the lease lasts without renewal.
        renewals: counts up while the holder lives.
    """

    token: str
    host: str
    machine: str
    process: int
    started: str
    seconds: float
    renewals: int = 0

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


@dataclass(frozen=True)
class _Link:
    """A place in the chain: the file, what it holds, and who that is where it can be read."""

    name: str
    data: bytes
    token: str
    holder: Holder | None

    def __str__(self) -> str:
        return str(self.holder or "another process")


class Lease:
    """A lease that is held.

    Args:
        slots: where; None: nowhere, with `--lock none`.
        place: for messages.
        root: name of the first file.
        name: name of this holder's file.
        holder: who holds it.
    """

    def __init__(self, slots: Slots | None, place: str, root: str, name: str, holder: Holder) -> None:
        self.holder = holder
        self._slots = slots
        self._place = place
        self._root = root
        self._name = name

    def check(self) -> None:
        """To be called before something is committed: a holder that was paused may have been taken for dead.

        Raises:
            LeaseLostError: somebody else holds the lease, or nobody.
        """
        if self._slots is None:
            return
        end = _end(self._slots, self._root)
        if end is None or end.token != self.holder.token:
            raise LeaseLostError(
                f"{self._place}: this process was taken for dead, as it did not renew its lease within "
                f"{self.holder.seconds:g} s; {end or 'another process'} has taken over. Nothing was committed"
            )

    def renew(self, stop: threading.Event) -> None:
        """Renew the lease three times in its life, until it is released or lost."""
        while self._slots is not None and not stop.wait(self.holder.seconds / 3):
            with contextlib.suppress(RnnlmError):  # the store may be away for a moment
                try:
                    self.check()
                except LeaseLostError:
                    return
                self.holder = replace(self.holder, renewals=self.holder.renewals + 1)
                self._slots.write_bytes(self._name, _bytes(self.holder))

    def release(self) -> None:
        """Let the next one in; nothing happens where the lease was lost."""
        if self._slots is None:
            return
        with contextlib.suppress(LeaseLostError):
            self.check()
            for name in [link.name for link in _chain(self._slots, self._root)]:
                self._slots.delete(name)


@contextlib.contextmanager
def lease(store: Store, name: str = LEASE_FILE, seconds: float = LEASE_S) -> Iterator[Lease]:
    """Hold a lease while the block runs.

    Raises:
        LeaseHeldError: it is held by somebody who lives; the message names host and process.
        UsageError: two could hold it at a time, and that was not to be.
    """
    held = _acquire(_slots(store), store.path(name), name, seconds)
    faults.point("lease.taken")
    stop = threading.Event()
    renewer = threading.Thread(target=held.renew, args=(stop,), daemon=True)
    renewer.start()
    try:
        yield held
    finally:
        stop.set()
        renewer.join()
        held.release()


def check_lockable(store: Store, given: Locking | None = None) -> None:
    """Whether leases can be taken on a store as asked for, by `given` or by what holds in this process.

    Raises:
        UsageError: they cannot.
    """
    given = given or _locking
    if given.mode == "required" and not store.exclusive and given.table is None:
        raise UsageError(
            f"--lock required: {store.uri} cannot create a file exclusively, and no database is at hand for locks. Give "
            "one by --tracking-uri (sqlite:///PATH, postgresql://...), write to a local folder, or give --lock auto"
        )


def current_holder(store: Store, name: str = LEASE_FILE) -> str | None:
    """Who holds the lease now, in words; None where nobody does. May watch a holder for as long as its lease lasts."""
    slots = _slots(store)
    end = None if slots is None else _end(slots, name)
    return None if end is None or slots is None or _is_dead(slots, name, end) else str(end)


def _slots(store: Store) -> Slots | None:
    check_lockable(store)
    if _locking.mode == "none":
        return None
    if store.exclusive:
        return store
    if _locking.table is not None:
        return _locking.table().slots(store.uri)
    _locking.say(
        f"{store.uri}: leases are not exclusive here; two commands that start at the same moment may both go on "
        "(a database as --tracking-uri would prevent that)"
    )
    return store


def _acquire(slots: Slots | None, place: str, root: str, seconds: float) -> Lease:
    process = os.getpid()
    holder = Holder(
        uuid.uuid4().hex, socket.gethostname(), _machine(), process, _started(process) or "", seconds, renewals=0
    )
    if slots is None:
        return Lease(None, place, root, root, holder)
    for _ in range(_ATTEMPTS):
        end = _end(slots, root)
        if end is not None and not _is_dead(slots, root, end):
            raise LeaseHeldError(f"{place}: held by {end}; wait until it ends")
        name = root if end is None else _successor(root, end.token)
        if not slots.create(name, _bytes(holder)):
            continue  # somebody was faster
        now = _end(slots, root)
        if now is not None and now.token == holder.token:
            return Lease(slots, place, root, name, holder)
        slots.delete(name)  # who it would have followed is gone from the chain
    raise LeaseHeldError(f"{place}: held by another process; wait until it ends")


def _is_dead(slots: Slots, root: str, end: _Link) -> bool:
    """Whether a holder is dead; False as well if there is another one by now that lives.

    One on another machine, or that cannot be read, is watched: a dead one does not renew.
    """
    holder = end.holder
    if holder is not None and holder.machine == _machine():
        return _started(holder.process) != holder.started
    seconds = LEASE_S if holder is None else holder.seconds
    _locking.say(f"a lease is held by {end}; whether it lives shows within {seconds:g} s")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(min(1.0, seconds / 10))
        now = _end(slots, root)
        if now is None or now.token != end.token:
            return now is None or _is_dead(slots, root, now)
        if now.data != end.data:
            return False
    return True


def _chain(slots: Slots, root: str) -> Iterator[_Link]:
    """The holders of a lease, each of which but the last is dead."""
    name, seen = root, set[str]()
    while name not in seen:
        try:
            data = slots.read_bytes(name)
        except FileNotFoundError:
            return
        link = _link(name, data)
        yield link
        seen.add(name)
        name = _successor(root, link.token)


def _end(slots: Slots, root: str) -> _Link | None:
    return next(reversed(list(_chain(slots, root))), None)


def _link(name: str, data: bytes) -> _Link:
    try:
        holder = Holder(**json.loads(data))
        if re.fullmatch("[0-9a-f]{32}", holder.token) and 0 < holder.seconds < 86_400 and holder.process > 0:
            return _Link(name, data, holder.token, holder)
    except (ValueError, TypeError):
        pass
    return _Link(name, data, hashlib.sha256(data).hexdigest()[:32], None)


def _successor(root: str, token: str) -> str:
    stem, dot, suffix = root.rpartition(".")
    return f"{stem}.{token}{dot}{suffix}"


def _bytes(holder: Holder) -> bytes:
    return json.dumps(asdict(holder), sort_keys=True).encode()


def _machine() -> str:
    """Where a process id means the same: host, boot and, in containers, the namespace of processes."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [
            Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip(),
            str(Path("/proc/self/ns/pid").readlink()),
        ]
    return " ".join(parts)


def _started(process: int) -> str | None:
    """When a process began, in a unit that no clock changes where the system has one; None where it is gone."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except OSError:
        pass
    try:
        found = psutil.Process(process)
        return None if found.status() == psutil.STATUS_ZOMBIE else str(found.create_time())
    except psutil.Error:
        return None
