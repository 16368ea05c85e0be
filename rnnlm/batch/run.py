"""Running a batch job: what is missing is generated, here or by somebody else's workers, then the manifest is written."""

import contextlib
import io
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rnnlm.artifacts import now
from rnnlm.batch import inputs
from rnnlm.batch import job as jobs
from rnnlm.batch.apart import Apart
from rnnlm.batch.config import BatchConfig
from rnnlm.batch.here import Here, Tell, TookTooLongError, say_on_stderr
from rnnlm.batch.inputs import InputRow, Shard, Snapshot
from rnnlm.batch.job import Job, ModelIdentity, OutputRow
from rnnlm.batch.lease import lease
from rnnlm.batch.work import generate_rows
from rnnlm.decoding.config import DecodeConfig
from rnnlm.errors import RnnlmError
from rnnlm.storage import Store

if TYPE_CHECKING:
    from rnnlm.decoding.generator import Generator

_log = logging.getLogger(__name__)

STAGING_FOLDER = "staged"
WORKING_FOLDER = "working"
"""A mark for each shard that somebody works on: one that is there already was left by a process that died."""
ROUNDS = 3
"""How often parts are made that are not whole when the job is to be committed."""
Advance = Callable[[int], None]
"""Told how many more rows are done."""


@dataclass(frozen=True)
class Worker:
    """What generates shards in one process.

    Attributes:
        generator: the model.
        package: the folder that it was loaded from, for processes apart.
        tell: told why the process is ended, where it has to be.
    """

    generator: "Generator"
    package: Path
    tell: Tell = say_on_stderr


@dataclass(frozen=True)
class ShardWork:
    """What a worker needs to know besides the model; small, and the same for all shards."""

    folder: str
    decode: DecodeConfig
    limits: BatchConfig
    model: ModelIdentity

    def write(self, worker: Worker, shard: Shard) -> dict[str, Any]:
        """Generate a shard and write its part and ledger entry.

        A shard on which a process has died is generated apart, in a process whose death is only the loss of a row.

        Raises:
            NoProcessError: such a process does not come to life.
        """
        free = worker.generator.task == "text"
        with _marked(Store(self.folder), shard.name) as died_before:
            made = None if died_before else self._made_here(worker, shard, free)
            if made is None:
                _log.warning("%s: an earlier attempt ended with its process; decoding in a process apart", shard.name)
                with Apart(worker.package, self.decode, self.limits.batch_timeout_s, _threads()) as apart:
                    made = generate_rows(apart, shard.rows, self.limits, free=free)
            return jobs.write_part(Store(self.folder), shard.name, made, self.model)

    def _made_here(self, worker: Worker, shard: Shard, free: bool) -> list[OutputRow] | None:
        """The rows of a shard; None where a batch takes too long."""
        worker.generator.decoder(self.decode)  # where a machine lacks the precision, rows are not to blame
        here = Here(worker.generator, self.decode, self.limits.batch_timeout_s, worker.tell)
        try:
            return generate_rows(here, shard.rows, self.limits, free=free)
        except TookTooLongError:
            return None


def run_job(
    job: Job,
    taken: Snapshot,
    output: Store,
    work_off: Callable[[ShardWork, Iterator[Shard]], None],
    *,
    anew: bool = False,
) -> dict[str, Any]:
    """Do what is missing of a job and commit it.

    Args:
        job: the job.
        taken: its input.
        output: the folder that the job's own folder lies in.
        work_off: generates and writes the shards that it is given.
        anew: do the work of a finished job again.

    Returns:
        The manifest.

    Raises:
        LeaseHeldError: another process works on the same job.
        LeaseLostError: another process has taken this one for dead; nothing was committed.
    """
    folder = job.folder(output)
    existing = None if anew else jobs.manifest(folder)
    if existing is not None:
        return existing
    with lease(folder) as held:
        if anew:
            jobs.discard(folder)
        existing = jobs.manifest(folder)  # who held the lease before may have been about to write it
        if existing is not None:
            return existing
        started, clock = now(), time.perf_counter()
        for _ in range(ROUNDS):
            missing = set(job.shard_names) - jobs.finished(folder, job).keys()
            if not missing:
                break
            work = ShardWork(folder.uri, job.decode, job.batch, job.model)
            work_off(work, inputs.shards(taken, job.batch, missing))
        for left in (STAGING_FOLDER, WORKING_FOLDER):
            folder.delete(left)
        return jobs.commit(folder, job, started, time.perf_counter() - clock, held.check)


def in_process(worker: Worker, advance: Advance) -> Callable[[ShardWork, Iterator[Shard]], None]:
    """Work the shards off one after another in this process."""

    def work_off(work: ShardWork, shards: Iterator[Shard]) -> None:
        for shard in shards:
            advance(work.write(worker, shard)["rows"])

    return work_off


@contextlib.contextmanager
def _marked(folder: Store, shard: str) -> Iterator[bool]:
    """Mark a shard while it is worked on. Yields whether it was marked: only a process that dies leaves its mark."""
    name = f"{WORKING_FOLDER}/{shard}.json"
    before = not folder.create(name, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode())
    try:
        yield before
    finally:
        folder.delete(name)


def _threads() -> int:
    import torch

    return torch.get_num_threads()


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
