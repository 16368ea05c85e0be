"""Places where a test may end the process, as if the power had gone, and texts on which decoding ends or hangs it.

`RNNLM_CRASH=POINT@N` ends the process without any clean-up when it comes to POINT for the Nth time. Points stand before and
after everything that others can see: files that commit something, batches of metrics, versions and aliases of models.

Where many processes come and go, `RNNLM_CRASH_AIM=FOLDER` serves better: a process that comes to a point takes away the file of
that name in the folder, if there is one, and kills itself. So each file that a test puts there is one death, and its going
proves where it happened.

`RNNLM_POISON=kill:TEXT` kills a process that decodes TEXT, `hang:TEXT` lets it hang outside of Python, where no signal is heard;
one such word a line.
"""

import os
import signal
import time
from collections.abc import Collection

VARIABLE = "RNNLM_CRASH"
AIM_VARIABLE = "RNNLM_CRASH_AIM"
EXIT_CODE = 86
POISON_VARIABLE = "RNNLM_POISON"
POINTS = (
    "store.write",  # before a file appears in the store
    "store.written",
    "checkpoint.files",  # before the first file of a checkpoint
    "checkpoint.commit",  # all files are there, the manifest is not
    "checkpoint.committed",
    "run.create",  # before MLflow makes a run
    "run.created",  # it is there, what it is for is not
    "metrics.send",  # before a batch goes to MLflow
    "metrics.sent",
    "version.create",
    "version.created",
    "alias.move",
    "alias.moved",
    "lease.taken",
    "ledger.write",  # of a search
    "ledger.written",
    "record.write",
    "record.written",
    "part.written",  # a batch job's part is there, its ledger entry is not
    "batch.commit",  # all parts are there, the manifest is not
    "batch.committed",
)

_seen: dict[str, int] = {}


def point(name: str) -> None:
    """A place where the process may end; does nothing unless the environment names it."""
    folder = os.environ.get(AIM_VARIABLE)
    if folder:
        _aimed(folder, name)
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    assert name in POINTS, name
    _seen[name] = _seen.get(name, 0) + 1
    if wanted == f"{name}@{_seen[name]}":
        os.write(2, f"crash point {wanted}\n".encode())
        os._exit(EXIT_CODE)


def _aimed(folder: str, name: str) -> None:
    try:
        os.unlink(f"{folder}/{name}")  # noqa: PTH108 -- atomic: of several processes one takes it
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def poison(texts: Collection[str]) -> None:
    """Texts that are about to be decoded; does nothing unless the environment names one of them."""
    for line in os.environ.get(POISON_VARIABLE, "").splitlines():
        kind, _, text = line.partition(":")
        assert kind in ("kill", "hang"), kind
        if text not in texts:
            continue
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
        time.sleep(1e6)
