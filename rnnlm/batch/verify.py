"""Checks a finished output against its manifest, and its rows against the input."""

import io
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rnnlm.batch import inputs
from rnnlm.batch import job as jobs
from rnnlm.batch.inputs import Shard, Snapshot
from rnnlm.batch.job import Job
from rnnlm.storage import Store


def verify(folder: Store, job: Job, taken: Snapshot) -> list[str]:
    """What is wrong with an output; empty: nothing.

    Args:
        folder: of the output.
        job: whose output it should be.
        taken: its input, read once more.
    """
    manifest = jobs.manifest(folder)
    if manifest is None:
        return [f"{folder.uri}: has no {jobs.MANIFEST_FILE}, so the job has not finished"]
    problems = [
        f"{jobs.MANIFEST_FILE}: {name} is {manifest.get(name)!r}, the job's is {value!r}"
        for name, value in {"key": job.key, "inputs": list(job.snapshot)}.items()
        if manifest.get(name) != value
    ]
    parts = {part["file"].removesuffix(".parquet"): part for part in manifest["parts"]}
    problems += [f"{name}.parquet: is not in the manifest" for name in job.shard_names if name not in parts]
    statuses: Counter[str] = Counter()
    for shard in inputs.shards(taken, job.batch, set(parts)):
        problems += _verify_part(folder, parts[shard.name], shard, statuses)
    if not problems and dict(statuses) != manifest["by_status"]:
        problems.append(f"{jobs.MANIFEST_FILE}: counts {manifest['by_status']}, the parts have {dict(statuses)}")
    return problems


def _verify_part(folder: Store, part: dict[str, Any], shard: Shard, statuses: Counter[str]) -> Iterator[str]:
    file = part["file"]
    try:
        data = folder.read_bytes(file)
    except FileNotFoundError:
        yield f"{file}: is missing"
        return
    if sha256(data).hexdigest() != part["sha256"]:
        yield f"{file}: is not what was written"
        return
    table: pa.Table = pq.read_table(io.BytesIO(data), columns=["row_id", "source", "status"])
    statuses.update(table.column("status").to_pylist())
    written = zip(table.column("row_id").to_pylist(), table.column("source").to_pylist(), strict=True)
    wanted = [(row.row_id, row.text) for row in shard.rows]
    for place, (found, expected) in enumerate(zip(written, wanted, strict=False)):
        if found != expected:
            yield f"{file}, row {place}: is {found[0]}, the input has {expected[0]} there"
            return
    if table.num_rows != len(wanted):
        yield f"{file}: has {table.num_rows} rows, the input {len(wanted)}"
