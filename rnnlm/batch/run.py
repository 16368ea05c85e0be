"""Running a batch job: what is missing is generated, here or by somebody else's workers, then the manifest is written."""

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rnnlm.artifacts import now
from rnnlm.batch import inputs
from rnnlm.batch import job as jobs
from rnnlm.batch.config import BatchConfig
from rnnlm.batch.inputs import InputRow, Shard, Snapshot
from rnnlm.batch.job import Job, ModelIdentity
from rnnlm.batch.lease import lease
from rnnlm.batch.work import generate_rows
from rnnlm.decoding.config import DecodeConfig
from rnnlm.errors import RnnlmError
from rnnlm.storage import Store

if TYPE_CHECKING:
    from rnnlm.decoding.generator import Generator

STAGING_FOLDER = "staged"
Advance = Callable[[int], None]
"""Told how many more rows are done."""


@dataclass(frozen=True)
class ShardWork:
    """What a worker needs to know besides the model; small, and the same for all shards."""

    folder: str
    decode: DecodeConfig
    limits: BatchConfig
    model: ModelIdentity

    def write(self, generator: "Generator", shard: Shard) -> dict[str, Any]:
        """Generate a shard and write its part and ledger entry."""
        made = generate_rows(generator, shard.rows, self.decode, self.limits)
        return jobs.write_part(Store(self.folder), shard.name, made, self.model)


def run_job(
    job: Job, taken: Snapshot, output: Store, work_off: Callable[[ShardWork, Iterator[Shard]], None]
) -> dict[str, Any]:
    """Do what is missing of a job and commit it.

    Args:
        job: the job.
        taken: its input.
        output: the folder that the job's own folder lies in.
        work_off: generates and writes the shards that it is given.

    Returns:
        The manifest.

    Raises:
        LeaseHeldError: another process works on the same job.
    """
    folder = job.folder(output)
    existing = jobs.manifest(folder)
    if existing is not None:
        return existing
    with lease(folder):
        started, clock = now(), time.perf_counter()
        missing = set(job.shard_names) - jobs.finished(folder).keys()
        work_off(
            ShardWork(folder.uri, job.decode, job.batch, job.model),
            inputs.shards(taken, job.batch, missing) if missing else iter(()),
        )
        manifest = jobs.commit(folder, job, started, time.perf_counter() - clock)
        folder.delete(STAGING_FOLDER)
        return manifest


def in_process(generator: "Generator", advance: Advance) -> Callable[[ShardWork, Iterator[Shard]], None]:
    """Work the shards off one after another in this process."""

    def work_off(work: ShardWork, shards: Iterator[Shard]) -> None:
        for shard in shards:
            advance(work.write(generator, shard)["rows"])

    return work_off


def stage_shard(folder: Store, shard: Shard) -> str:
    """Write a shard's input for a worker elsewhere; returns the shard's name."""
    columns = {key: [getattr(row, key) for row in shard.rows] for key in ("row_id", "text", "problem")}
    schema = pa.schema([("row_id", pa.string()), ("text", pa.large_string()), ("problem", pa.string())])
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), sink)
    folder.write_bytes(f"{STAGING_FOLDER}/{shard.name}.parquet", sink.getvalue())
    return shard.name


def staged_shard(folder: Store, name: str) -> Shard:
    """Read back what `stage_shard` wrote.

    Raises:
        RnnlmError: it is not there.
    """
    try:
        table = pq.read_table(io.BytesIO(folder.read_bytes(f"{STAGING_FOLDER}/{name}.parquet")))
    except FileNotFoundError:
        raise RnnlmError(f"{folder.uri}: the input of {name} is gone; run the command again") from None
    return Shard(name, [InputRow(**row) for row in table.to_pylist()])
