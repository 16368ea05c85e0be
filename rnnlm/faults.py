"""Places where a test may end the process, as if the power had gone.

`RNNLM_CRASH=POINT@N` ends the process without any clean-up when it comes to POINT for the Nth time. Points stand before and
after everything that others can see: files that commit something, batches of metrics, versions and aliases of models.
"""

import os

VARIABLE = "RNNLM_CRASH"
EXIT_CODE = 86
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
)

_seen: dict[str, int] = {}


def point(name: str) -> None:
    """A place where the process may end; does nothing unless the environment names it."""
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    assert name in POINTS, name
    _seen[name] = _seen.get(name, 0) + 1
    if wanted == f"{name}@{_seen[name]}":
        os._exit(EXIT_CODE)
