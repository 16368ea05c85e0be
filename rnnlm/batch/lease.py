"""A lease on a name in a store: one holder at a time, and a dead holder's lease runs out."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from rnnlm import faults
from rnnlm.errors import RnnlmError
from rnnlm.storage import Store

LEASE_S = 60.0
"""Seconds for which a lease holds without being renewed."""


class LeaseHeldError(RnnlmError):
    """Somebody else holds the lease."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, and until when (seconds since 1970)."""

    token: str
    host: str
    process: int
    expires: float


@contextlib.contextmanager
def lease(store: Store, name: str = "lease.json", seconds: float = LEASE_S) -> Iterator[Holder]:
    """Hold a lease while the block runs, renewing it three times in its life.

    Raises:
        LeaseHeldError: it is held and has not run out; the message names host and process.
    """
    holder = _acquire(store, name, seconds)
    faults.point("lease.taken")
    stop = threading.Event()
    renewer = threading.Thread(target=_renew, args=(store, name, holder, seconds, stop), daemon=True)
    renewer.start()
    try:
        yield holder
    finally:
        stop.set()
        renewer.join()
        if _read(store, name, holder.token):
            store.delete(name)


def current_holder(store: Store, name: str = "lease.json") -> Holder | None:
    """Who holds the lease now; None where nobody does or the lease has run out."""
    try:
        holder = Holder(**store.read_json(name))
    except (FileNotFoundError, RnnlmError, TypeError):
        return None
    return holder if holder.expires > time.time() and not _is_dead(holder) else None


def _is_dead(holder: Holder) -> bool:
    """Whether the holder was a process of this host that is gone: then nobody has to wait for the lease to run out."""
    if holder.host != socket.gethostname():
        return False
    try:
        os.kill(holder.process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _acquire(store: Store, name: str, seconds: float) -> Holder:
    holder = Holder(uuid.uuid4().hex, socket.gethostname(), os.getpid(), time.time() + seconds)
    store_bytes = _bytes(holder)
    if store.create(name, store_bytes):
        return holder
    other = current_holder(store, name)
    if other is None:
        store.delete(name)
        if store.create(name, store_bytes):
            return holder
        other = current_holder(store, name)
    who = f"process {other.process} on {other.host}" if other else "another process"
    raise LeaseHeldError(f"{store.path(name)}: held by {who}; wait until it ends, or until its lease runs out")


def _renew(store: Store, name: str, holder: Holder, seconds: float, stop: threading.Event) -> None:
    while not stop.wait(seconds / 3):
        renewed = Holder(holder.token, holder.host, holder.process, time.time() + seconds)
        with contextlib.suppress(RnnlmError):
            store.write_bytes(name, _bytes(renewed))


def _read(store: Store, name: str, token: str) -> bool:
    try:
        return bool(store.read_json(name)["token"] == token)
    except (FileNotFoundError, RnnlmError, KeyError, TypeError):
        return False


def _bytes(holder: Holder) -> bytes:
    return json.dumps(holder.__dict__, sort_keys=True).encode()
