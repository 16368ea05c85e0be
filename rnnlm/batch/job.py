"""A batch job: its key, its shards, the ledger of finished ones, and the manifest that makes the output exist.

A job is a function of (model digest, input snapshot, decoding settings and limits); the hash of these is its key. Each
shard of rows becomes one Parquet file whose bytes depend on nothing else, so that a rerun does only what is missing and
ends with the same files as an uninterrupted run.

    OUTPUT/run=KEY/part-00000.parquet     rows, in order
                   ledger/part-00000.json what the part holds: rows by status, SHA-256
                   rejects.jsonl          the rejected rows, with reasons
                   manifest.json          written last
"""

import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rnnlm import faults
from rnnlm.artifacts import git_commit, now
from rnnlm.batch.config import BatchConfig
from rnnlm.config import digest
from rnnlm.decoding.config import DecodeConfig
from rnnlm.errors import RnnlmError, UnreachableError
from rnnlm.storage import Store, trusting

_log = logging.getLogger(__name__)

FORMAT_NUMBER = 1
LEDGER_FOLDER = "ledger"
MANIFEST_FILE = "manifest.json"
REJECTS_FILE = "rejects.jsonl"
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("source", pa.large_string()),
        ("output", pa.large_string()),
        ("score", pa.float64()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("model_name", pa.string()),
        ("model_version", pa.string()),
    ]
)


@dataclass(frozen=True)
class ModelIdentity:
    """Which model writes the rows.

    Attributes:
        digest: SHA-256 of its package's files, the identity that counts.
        name: registered name, or the folder's.
        version: registered version; empty for a folder.
    """

    digest: str
    name: str
    version: str


@dataclass(frozen=True)
class OutputRow:
    """One row of output: `ok`, `flagged` (made, but doubtful) or `rejected`, the last two with a reason."""

    row_id: str
    source: str | None
    output: str
    score: float | None
    status: str
    reason: str | None


@dataclass(frozen=True)
class Job:
    """Everything that determines the output.

    Attributes:
        model: who writes.
        snapshot: name, SHA-256 and number of rows of every input file, in order.
        decode: decoding settings.
        batch: limits and the rows of a shard.
    """

    model: ModelIdentity
    snapshot: tuple[dict[str, Any], ...]
    decode: DecodeConfig
    batch: BatchConfig

    @property
    def key(self) -> str:
        """Identity of the output: 20 hexadecimal digits."""
        limits = self.batch.plain()
        # How the rows are made and judged, not which.
        for name in ("in_process_rows", "batch_timeout_s", "max_reject_share", "max_flagged_share"):
            limits.pop(name)
        parts = {"model": self.model.digest, "inputs": list(self.snapshot), "decode": self.decode.effective()}
        return digest(parts | {"limits": limits, "format": FORMAT_NUMBER})[:20]

    @property
    def shard_names(self) -> list[str]:
        """Names of all parts, in the order of the rows."""
        return [f"part-{number:05d}" for number in range(sum(self.shards_of(entry["rows"]) for entry in self.snapshot))]

    def shards_of(self, rows: int) -> int:
        """Shards of a file with so many rows: a shard never spans two files."""
        return -(-rows // self.batch.shard_rows)

    def shard_sizes(self) -> dict[str, int]:
        """Rows of each part by its name, in the order of the rows."""
        most = self.batch.shard_rows
        sizes = [min(most, entry["rows"] - at) for entry in self.snapshot for at in range(0, entry["rows"], most)]
        return dict(zip(self.shard_names, sizes, strict=True))

    def folder(self, output: Store) -> Store:
        """Where this job's files go."""
        return output.child(f"run={self.key}")


def write_part(folder: Store, name: str, rows: Sequence[OutputRow], model: ModelIdentity) -> dict[str, Any]:
    """Write a part and then its ledger entry, which says that the part is whole.

    Returns:
        The entry: rows in all and by status, tokens are not counted, SHA-256 of the file.
    """
    columns = {
        key: [getattr(row, key) for row in rows] for key in ("row_id", "source", "output", "score", "status", "reason")
    }
    columns["model_name"] = [model.name] * len(rows)
    columns["model_version"] = [model.version] * len(rows)
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, schema=SCHEMA), sink, compression="zstd")
    data = sink.getvalue()
    folder.write_bytes(f"{name}.parquet", data)
    faults.point("part.written")
    rejects = [{"row_id": row.row_id, "reason": row.reason} for row in rows if row.status == "rejected"]
    entry: dict[str, Any] = {
        "name": name,
        "rows": len(rows),
        "by_status": dict(sorted(Counter(row.status for row in rows).items())),
        "sha256": sha256(data).hexdigest(),
        "rejects": rejects,
    }
    entry["digest"] = digest(entry)
    folder.write_json(_ledger(name), entry)
    return entry


def finished(folder: Store, job: Job) -> dict[str, dict[str, Any]]:
    """Ledger entries of the parts that are whole, by name: the bytes of the part are read and compared.

    An entry that was changed, or whose part is not the one that it tells of, is left out with a warning: its shard is done
    again.
    """
    there = set(folder.files(LEDGER_FOLDER))
    entries = {}
    for name, rows in job.shard_sizes().items():
        if _ledger(name) not in there:
            continue
        try:
            entries[name] = _checked_entry(folder, name, rows)
        except UnreachableError:
            raise
        except (RnnlmError, FileNotFoundError) as error:
            _log.warning("%s; the part is made again", error)
    return entries


def _checked_entry(folder: Store, name: str, rows: int) -> dict[str, Any]:
    """The ledger entry of a part.

    Raises:
        RnnlmError: the entry or the part is not what was written.
        FileNotFoundError: one of them is gone.
    """
    entry = folder.read_json(_ledger(name))
    told = entry.pop("digest", None) if isinstance(entry, dict) else None
    if told is None or told != digest(entry) or (entry.get("name"), entry.get("rows")) != (name, rows):
        raise RnnlmError(f"{folder.path(_ledger(name))}: is not what was written")
    if sha256(folder.read_bytes(f"{name}.parquet")).hexdigest() != entry["sha256"]:
        raise RnnlmError(f"{folder.path(name)}.parquet: is not what was written")
    return dict(entry)


def manifest(folder: Store) -> dict[str, Any] | None:
    """The manifest of a finished job, else None."""
    try:
        value = folder.read_json(MANIFEST_FILE)
    except FileNotFoundError:
        return None
    if not isinstance(value, dict):
        raise RnnlmError(f"{folder.path(MANIFEST_FILE)}: not a manifest")
    return value


def discard(folder: Store) -> None:
    """Let a finished job begin anew; one that has not finished goes on.

    The ledger goes first: as long as the manifest is there, the output is whole, and after it nothing is taken over.
    """
    if folder.exists(MANIFEST_FILE):
        folder.delete(LEDGER_FOLDER)
        folder.delete(MANIFEST_FILE)


def commit(folder: Store, job: Job, started: str, seconds: float, check: Callable[[], None]) -> dict[str, Any]:
    """Write the rejects and then the manifest: from now on the output exists.

    Args:
        folder: of the job.
        job: the job.
        started: when it was begun.
        seconds: that it took.
        check: raises where somebody else works on the job by now.

    Raises:
        RnnlmError: a part is missing or is not what was written.
    """
    entries = finished(folder, job)
    missing = [name for name in job.shard_names if name not in entries]
    if missing:
        raise RnnlmError(
            f"{folder.uri}: {len(missing)} parts are missing, the first is {missing[0]}; run the command again"
        )
    ordered = [entries[name] for name in job.shard_names]
    rows_out = sum(entry["rows"] for entry in ordered)
    check()
    folder.write_bytes(REJECTS_FILE, b"".join(_reject_lines(ordered)))
    by_status: Counter[str] = Counter()
    for entry in ordered:
        by_status.update(entry["by_status"])
    value = {
        "format": FORMAT_NUMBER, "key": job.key, "model": asdict(job.model), "inputs": list(job.snapshot),
        "decode": job.decode.effective(), "limits": job.batch.plain(), "rows": rows_out,
        "by_status": dict(sorted(by_status.items())),
        "parts": [{"file": f"{entry['name']}.parquet", "rows": entry["rows"], "sha256": entry["sha256"]} for entry in ordered],
        "started": started, "finished": now(), "seconds": round(seconds, 3), "commit": git_commit(),
    }  # fmt: skip
    check()
    faults.point("batch.commit")
    folder.write_json(MANIFEST_FILE, value)
    faults.point("batch.committed")
    return value


def read_rows(folder: Store, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a finished job, in order."""
    value = manifest(folder)
    if value is None:
        raise RnnlmError(f"{folder.uri}: there is no manifest, so the job has not finished")
    count = 0
    with trusting(folder.path(MANIFEST_FILE)):
        for part in value["parts"]:
            for row in pq.read_table(io.BytesIO(folder.read_bytes(part["file"]))).to_pylist():
                if limit is not None and count >= limit:
                    return
                count += 1
                yield row


def _reject_lines(entries: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    for entry in entries:
        for reject in entry["rejects"]:
            yield (json.dumps(reject, ensure_ascii=False, sort_keys=True) + "\n").encode()


def _ledger(name: str) -> str:
    return f"{LEDGER_FOLDER}/{name}.json"
