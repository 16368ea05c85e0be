"""MLflow that may be away for a while: what cannot be sent is kept in the store, in order, and sent later.

    STORE/spool/000017-3f9a.json    one call that writes: its name and arguments
    STORE/spool/000017-3f9a/        the files that it uploads

Only calls that write to a run that exists are kept. Those that ask, or make a run, need the server.
"""

import functools
import logging
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from rnnlm.errors import UnreachableError, UsageError, without_secrets
from rnnlm.integrations.batch_tracker import Point
from rnnlm.integrations.mlflow_tracking import Tracking
from rnnlm.storage import Store

FOLDER = "spool"
RETRY_S = 30.0
"""Seconds after a failed call for which the server is not asked again: each attempt may take as long."""
_log = logging.getLogger(__name__)
_P = ParamSpec("_P")


class Spool:
    """The calls that wait in a store."""

    def __init__(self, store: Store) -> None:
        self.store = store.child(FOLDER)

    def __len__(self) -> int:
        return len(self._names())

    def add(self, method: str, run_id: str, arguments: dict[str, Any], files: Path | None = None) -> None:
        """Keep a call; `files` is a file or folder that it uploads."""
        names = self._names()
        number = int(names[-1].partition("-")[0]) + 1 if names else 1
        # Other commands may keep calls in the same store, and a name that was used once may lie in a cache.
        name = f"{number:06d}-{uuid.uuid4().hex[:8]}"
        if files is not None:
            self.store.upload(files, f"{name}/{files.name}")
            arguments = {**arguments, "path": files.name}
        # The entry comes last: until it is there, the files belong to nothing.
        self.store.write_json(f"{name}.json", {"method": method, "run_id": run_id, "arguments": arguments})

    def send(self, tracking: Tracking) -> int:
        """Send all, in order; each call is forgotten once it is done.

        Calls for runs that this server does not have are kept, for the one that has them.

        Returns:
            How many were sent.

        Raises:
            UnreachableError: the server is away; what it has not got is kept.
        """
        sent = 0
        known: dict[str, bool] = {}
        for name in self._names():
            try:
                entry = self.store.read_json(f"{name}.json")
            except FileNotFoundError:
                continue  # Another command has sent it.
            run_id = entry["run_id"]
            if run_id not in known:
                known[run_id] = tracking.has_run(run_id)
            if known[run_id]:
                self._send(tracking, name, **entry)
                self.store.delete(f"{name}.json")
                self.store.delete(name)
                sent += 1
        return sent

    def _send(self, tracking: Tracking, name: str, method: str, run_id: str, arguments: dict[str, Any]) -> None:
        # The plain method: that of `SpooledTracking` would keep the call anew.
        if method == "log_points":
            # A call that was cut off may have left some of them there.
            Tracking.log_new_points(tracking, run_id, [Point(*point) for point in arguments["points"]])
        elif "path" in arguments:
            path = self.store.fetch(f"{name}/{arguments['path']}")
            getattr(Tracking, method)(tracking, run_id, path, arguments["folder"])
        else:
            getattr(Tracking, method)(tracking, run_id, **arguments)

    def _names(self) -> list[str]:
        return sorted(name.removesuffix(".json") for name in self.store.files() if "/" not in name)


def _kept(
    method: Callable[Concatenate["SpooledTracking", str, _P], None],
) -> Callable[Concatenate["SpooledTracking", str, _P], None]:
    """A call that writes: made now if the server answers and nothing waits before it, else kept."""

    def call(self: "SpooledTracking", run_id: str, *args: _P.args, **kwargs: _P.kwargs) -> None:
        if self._may_send():
            try:
                Tracking.__dict__[method.__name__](self, run_id, *args, **kwargs)
                return
            except UnreachableError as error:
                self._is_away(error)
        method(self, run_id, *args, **kwargs)

    return functools.update_wrapper(call, method)  # type: ignore[return-value]


class SpooledTracking(Tracking):
    """As `Tracking`, but a server that goes away after it was there costs nothing but delay.

    Args:
        uri, artifact_root: as for `Tracking`.
        store: what waits is kept there; sent here if there is something from before.

    Raises:
        UnreachableError: the server does not answer now.
    """

    def __init__(self, uri: str, artifact_root: str | None, store: Store) -> None:
        super().__init__(uri, artifact_root)
        self.spool = Spool(store)
        self._asked_at: float | None = None
        sent = self.spool.send(self)
        if sent:
            _log.info("sent %d calls that waited in %s", sent, without_secrets(self.spool.store.uri))

    def flush(self) -> int:
        """Send what waits, now; how many calls that were.

        Raises:
            UnreachableError: the server is away.
            UsageError: what waits is for runs that the server does not have.
        """
        sent = self.spool.send(self)
        if left := len(self.spool):
            raise UsageError(
                f"{self.spool.store.uri}: {left} calls wait for runs that {self.uri} does not have; give the "
                "--tracking-uri that has them, or delete the folder if they were deleted there"
            )
        return sent

    def _may_send(self) -> bool:
        """Whether the server is there, as far as is known, and has got all that waited."""
        if self._asked_at is not None and time.monotonic() - self._asked_at < RETRY_S:
            return False
        if not len(self.spool):
            return True
        try:
            self.spool.send(self)
        except UnreachableError as error:
            self._is_away(error)
            return False
        self._asked_at = None
        return True

    def _is_away(self, error: UnreachableError) -> None:
        self._asked_at = time.monotonic()
        _log.warning("%s; what is logged is kept in %s", error, without_secrets(self.spool.store.uri))

    @_kept
    def set_tags(self, run_id: str, tags: Any) -> None:
        """See `Tracking.set_tags`."""
        self.spool.add("set_tags", run_id, {"tags": {key: without_secrets(value) for key, value in tags.items()}})

    @_kept
    def log_points(self, run_id: str, points: Any) -> None:
        """See `Tracking.log_points`."""
        self.spool.add("log_points", run_id, {"points": [list(point) for point in points]})

    @_kept
    def log_new_points(self, run_id: str, points: Any) -> None:
        """See `Tracking.log_new_points`; what is kept is compared with what is there when it is sent."""
        self.spool.add("log_points", run_id, {"points": [list(point) for point in points]})

    @_kept
    def log_artifact(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """See `Tracking.log_artifact`."""
        self.spool.add("log_artifact", run_id, {"folder": folder}, path)

    @_kept
    def log_artifacts(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """See `Tracking.log_artifacts`."""
        self.spool.add("log_artifacts", run_id, {"folder": folder}, path)

    @_kept
    def log_text(self, run_id: str, text: str, name: str) -> None:
        """See `Tracking.log_text`."""
        self.spool.add("log_text", run_id, {"text": text, "name": name})

    @_kept
    def log_table(self, run_id: str, columns: Any, name: str) -> None:
        """See `Tracking.log_table`."""
        self.spool.add(
            "log_table", run_id, {"columns": {key: list(value) for key, value in columns.items()}, "name": name}
        )

    @_kept
    def log_figure(self, run_id: str, figure: Any, name: str) -> None:
        """See `Tracking.log_figure`."""
        folder, _, file = name.rpartition("/")
        with tempfile.TemporaryDirectory(prefix="rnnlm-figure-") as temporary:
            path = Path(temporary) / file
            figure.savefig(path)
            self.spool.add("log_artifact", run_id, {"folder": folder or None}, path)

    @_kept
    def end_run(self, run_id: str, status: str = "FINISHED") -> None:
        """See `Tracking.end_run`. Until it is sent, the run shows as running."""
        self.spool.add("end_run", run_id, {"status": status})
