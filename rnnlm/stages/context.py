"""What every stage shares: where it runs, what it reads, when its work is done already, and what it reports."""

import contextlib
import functools
import importlib.util
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnlm import artifacts
from rnnlm.artifacts import Record
from rnnlm.batch.lease import Lease, Locking, lease
from rnnlm.config import digest
from rnnlm.console import Console, Progress
from rnnlm.errors import UsageError
from rnnlm.experiment import Experiment
from rnnlm.interrupts import Interrupts
from rnnlm.storage import Store

if TYPE_CHECKING:
    from rnnlm.integrations.lock_table import LockTable
    from rnnlm.integrations.mlflow_spool import SpooledTracking
    from rnnlm.integrations.ray_cluster import Placement, Session

STORE_VARIABLE = "RNNLM_STORE"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
ADDRESS_VARIABLE = "RAY_ADDRESS"
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
DEFAULT_STORE = "store"
DATABASE_FILE = "mlflow.db"
ARTIFACT_FOLDER = "mlartifacts"
RUN_FILE = "run.json"
"""In a stage's folder: the key that its MLflow run is made with, and once it is made, its id."""
KEY_TAG = "rnnlm.key"
"""On a run: which work it is for; a process that ended before it noted the run's id left a run that is found by this."""
_MADE_FROM = {"tokenize_corpus": ("ingest", "corpus"), "train": ("tokenize_corpus", "tokens")}
"""The stage that made a stage's input, and the name of that input."""


@dataclass(frozen=True)
class Options:
    """Where a stage runs; none of it is part of an experiment.

    Attributes:
        store: folder or URI for everything that is written.
        tracking_uri: MLflow's, a database or a server.
        address: of a running Ray; None starts one here.
        workers: training processes; None lets the machine decide. `most_workers`: what they may grow to, where they may go
            on with fewer.
        cpus_per_worker: cores of each.
        gpus_per_worker: GPUs of each.
        from_run: take this MLflow run's record as input instead of the newest.
        force: do the work although a record matches.
        lock: what happens where a store cannot lock, one of `rnnlm.batch.lease.MODES`.
        base: folder that relative paths of the data are resolved against.
    """

    store: str
    tracking_uri: str
    address: str | None = None
    workers: int | None = None
    most_workers: int | None = None
    cpus_per_worker: int | None = None
    gpus_per_worker: float | None = None
    from_run: str | None = None
    force: bool = False
    lock: str = "auto"
    base: Path = field(default_factory=Path.cwd)


@dataclass
class Outcome:
    """What a stage reports: to people as a summary, to programs as JSON.

    Attributes:
        stage: its name.
        skipped: a record matched, nothing was done.
        run_id: MLflow run.
        metrics: headline figures by their MLflow keys.
        model_uri: a registered model version, `models:/NAME/VERSION`; `model_alias` is the alias that it got.
        artifacts: names to paths or URIs of what was written.
        seconds: wall time of the work; `startup_s` of waiting for Ray and workers, counted apart.
        notes: lines for people.
        next_command: what to type next.
        alert: a bound that was crossed although everything was written; exit code 4.
        record: the record behind it.
    """

    stage: str
    skipped: bool = False
    run_id: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    model_uri: str | None = None
    model_alias: str | None = None
    artifacts: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    startup_s: float = 0.0
    notes: list[str] = field(default_factory=list)
    next_command: str = ""
    alert: str | None = None
    record: Record | None = None


@dataclass
class Work:
    """What the work of a stage returns, before its record is written."""

    files: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    run_id: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    model_uri: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class _Shared:
    """What all contexts of one command have in common.

    Attributes:
        tracking: the tracking server, once it is in use.
        ray: the Ray session, once it is in use.
        records: what the stages of this command wrote or found, by experiment and stage.
        starting: held while the first two are started, as threads may want them at the same time.
    """

    tracking: "SpooledTracking | None" = None
    ray: "Session | None" = None
    records: dict[tuple[str, str], Record] = field(default_factory=dict)
    starting: threading.RLock = field(default_factory=threading.RLock)


class Surroundings:
    """Where one command runs: store, tracking server, Ray, console, signals."""

    def __init__(self, options: Options, console: Console, interrupts: Interrupts) -> None:
        self.options = options
        self.console = console
        self.interrupts = interrupts
        self.store = Store(options.store)
        self.startup_s = 0.0
        self._shared = _Shared()

    @property
    def tracking(self) -> "SpooledTracking":
        """The tracking server, checked for an answer when it is first used, and sent what waits for it in the store.

        Raises:
            UnreachableError: there is no answer.
            UsageError: its artifacts would go where the libraries for that are not installed.
        """
        with self._shared.starting:
            if self._shared.tracking is None:
                from rnnlm.integrations.mlflow_spool import SpooledTracking

                self.check_libraries()
                with self.starting_up():
                    self._shared.tracking = SpooledTracking(self.options.tracking_uri, self.artifact_root, self.store)
            return self._shared.tracking

    @property
    def ray(self) -> "Session":
        """The Ray session, started or connected to when it is first used."""
        with self._shared.starting:
            if self._shared.ray is None:
                from rnnlm.integrations import ray_cluster

                with self.starting_up():
                    self._shared.ray = ray_cluster.connect(
                        self.options.address, store=self.store, tracking_uri=self.options.tracking_uri
                    )
            return self._shared.ray

    @property
    def artifact_root(self) -> str | None:
        """Where MLflow keeps artifacts when its database is ours; a server knows its own place."""
        return self.store.path(ARTIFACT_FOLDER) if _is_database(self.options.tracking_uri) else None

    def check_libraries(self) -> None:
        """Whether MLflow can write its artifacts where they go.

        Raises:
            UsageError: it cannot; the message names what to install.
        """
        root = self.artifact_root
        if root is not None and root.startswith("s3://") and importlib.util.find_spec("boto3") is None:
            raise UsageError(
                f"--store {self.options.store}: MLflow needs boto3 for its artifacts there, which is not installed; "
                "pip install 'rnnlm[s3]', or use a tracking server that keeps them itself"
            )

    def locking(self) -> Locking:
        """How leases are taken: where a store cannot create exclusively, in the tracking database if there is one."""

        @functools.cache
        def table() -> "LockTable":
            from rnnlm.integrations.lock_table import LockTable

            return LockTable(self.options.tracking_uri)

        database = _is_database(self.options.tracking_uri)
        return Locking(self.options.lock, table if database else None, self.console.say)

    def waiting(self) -> str | None:
        """Where calls wait that the tracking server has not got; None: nowhere."""
        spool = getattr(self._shared.tracking, "spool", None)
        return spool.store.uri if spool is not None and len(spool) else None

    def close(self) -> None:
        """Stop the Ray that we started."""
        session, self._shared.ray = self._shared.ray, None
        if session is not None:
            session.close()

    @contextlib.contextmanager
    def starting_up(self) -> Iterator[None]:
        """Time spent in the block counts as start-up, apart from the work."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.startup_s += time.perf_counter() - started


class Context(Surroundings):
    """A command's surroundings and its experiment. A `run_all` shares one among its stages, so that Ray starts once."""

    def __init__(self, experiment: Experiment, options: Options, console: Console, interrupts: Interrupts) -> None:
        super().__init__(options, console, interrupts)
        self.experiment = experiment
        self.pipeline_run_id: str | None = None

    def with_experiment(self, experiment: Experiment) -> "Context":
        """The same surroundings, with the same Ray and tracking, for another experiment."""
        other = self.beside(experiment, self.options, self.console, self.interrupts)
        other.pipeline_run_id = self.pipeline_run_id
        return other

    def beside(self, experiment: Experiment, options: Options, console: Console, interrupts: Interrupts) -> "Context":
        """The same Ray and tracking for work of another thread, or on other cores."""
        other = Context(experiment, options, console, interrupts)
        other._shared = self._shared
        return other

    def progress(self, work: str, total: float | None = None) -> contextlib.AbstractContextManager[Progress]:
        """Live progress of this experiment's work while the block runs."""
        return self.console.progress(f"{work} {self.experiment.name}", total)

    def folder(self, stage: str, record_digest: str) -> Store:
        """Where a stage of this experiment with this identity writes."""
        return artifacts.folder(self.store, self.experiment.name, stage, record_digest)

    def placement(self) -> "Placement":
        """The processes of a training: as asked for, else what suits the machine. `--workers 0` trains in this process.

        Raises:
            UsageError: the cluster is too small for the request.
        """
        from rnnlm.integrations.ray_cluster import Placement

        options = self.options
        if options.workers == 0:
            return Placement(0, options.cpus_per_worker or os.cpu_count() or 1, options.gpus_per_worker or 0.0)
        placement = self.ray.placement(
            options.workers, options.cpus_per_worker, options.gpus_per_worker, self.experiment.positions_per_step
        )
        return placement if options.most_workers is None else replace(placement, most_workers=options.most_workers)

    @contextlib.contextmanager
    def mlflow_run(self, folder: Store, stage: str, inputs: dict[str, str] | None = None) -> Iterator[str]:
        """The one MLflow run of a stage's work: made once, found again when the work goes on after a stop or a crash.

        The run ends as FINISHED, after an error as FAILED, after an interrupt as KILLED.

        Args:
            folder: where the stage writes; remembers the run.
            stage: value of the tag `rnnlm.stage`.
            inputs: name to digest of what it reads.
        """
        noted = folder.read_json(RUN_FILE) if folder.exists(RUN_FILE) else {}
        run_id = self._known_run(noted)
        if run_id is None:
            run_id = self._new_run(folder, stage, inputs, noted.get("key"))
        else:
            self.tracking.reopen_run(run_id)
        with self.tracking.closing(run_id):
            yield run_id

    def _known_run(self, noted: dict[str, Any]) -> str | None:
        run_id = noted.get("run_id")
        return run_id if run_id is not None and self.tracking.has_run(run_id) else None

    def _new_run(self, folder: Store, stage: str, inputs: dict[str, str] | None, key: str | None) -> str:
        """A run for a key that is noted before it is made, so that no process can leave a run that nobody finds.

        The key stays the same at another tracking server, so that a return to the first one finds its run.
        """
        if key is None:
            key = uuid.uuid4().hex
            folder.write_json(RUN_FILE, {"key": key})
        run_id = self.tracking.start_run(
            self.experiment.name,
            stage,
            stage,
            parent_run_id=self.pipeline_run_id,
            tags={"rnnlm.task": self.experiment.task},
            params=self.experiment.settings(stage),
            inputs=inputs,
            identity={KEY_TAG: key},
        )
        folder.write_json(RUN_FILE, {"key": key, "run_id": run_id})
        return run_id

    def newest(self, stage: str, inputs: dict[str, str] | None = None) -> Record:
        """The record that a later stage reads: of `--from`, else what this command made of it, else the newest that this
        experiment would make, from the corpus to this stage.

        Args:
            stage: which stage made it.
            inputs: what it has to be made from; None leaves that open.

        Raises:
            UsageError: there is none; the message says which command makes it.
        """
        made = self.named(stage) or self._shared.records.get((self.experiment.name, stage))
        if made is not None:
            return made
        found = artifacts.records(self.store, self.experiment.name, stage)
        matching = [record for record in self._matching(stage) if inputs is None or record.inputs == inputs]
        if not matching:
            other = " (there are some with other settings)" if found else ""
            raise UsageError(
                f"{self.experiment.name}: no record of {stage} in {self.store.uri}{other}; "
                f"first run: python -m pipelines.{stage} EXPERIMENT.toml"
            )
        return matching[0]

    def named(self, stage: str) -> Record | None:
        """The record of a stage that `--from` means by its run or its digest.

        Raises:
            UsageError: no stage of this experiment has such a record.
        """
        wanted = self.options.from_run
        if wanted is None:
            return None
        for each in artifacts.FORMAT_NUMBERS:
            for record in artifacts.records(self.store, self.experiment.name, each):
                if record.run_id == wanted or record.digest.startswith(wanted):
                    return record if each == stage else None
        raise UsageError(f"--from {wanted}: no stage of {self.experiment.name} in {self.store.uri} has such a run")

    def _matching(self, stage: str) -> list[Record]:
        """Records with this experiment's settings that were made from such records, newest first."""
        wanted = digest(self.experiment.settings(stage))
        found = artifacts.records(self.store, self.experiment.name, stage)
        same = [record for record in found if digest(record.settings) == wanted]
        if stage not in _MADE_FROM:
            return same
        earlier, name = _MADE_FROM[stage]
        origins = {record.digest for record in self._matching(earlier)}
        return [record for record in same if record.inputs[name] in origins]

    def run_stage(
        self,
        stage: str,
        settings: dict[str, Any],
        inputs: dict[str, str],
        work: Callable[[Store], Work],
        relog: Callable[[Record], Record] | None = None,
    ) -> Outcome:
        """Do a stage's work unless a record matches, then write its record.

        Only one process works on a folder at a time.

        Args:
            stage: its name.
            settings: its part of the experiment.
            inputs: name to digest of everything it reads.
            work: writes into the folder that it is given, and returns what the record says.
            relog: logs a record's contents to MLflow again and returns the record with the new run; used where the
                record's run does not exist at this tracking URI.

        Raises:
            LeaseHeldError: another process does the same work.
        """
        self.interrupts.check()
        identity = artifacts.identity(stage, settings, inputs)
        folder = self.folder(stage, identity)
        record = artifacts.read_record(folder)
        if record is not None and not self.options.force:
            return self._skip(record, relog)
        with lease(self.store, artifacts.lease_name(self.experiment.name, stage, identity)) as held:
            record = artifacts.read_record(folder)  # somebody may just have finished it
            if record is not None and not self.options.force:
                return self._skip(record, relog)
            return self._do_stage(Record(stage, self.experiment.name, identity, settings, inputs), work, relog, held)

    def _do_stage(
        self,
        planned: Record,
        work: Callable[[Store], Work],
        relog: Callable[[Record], Record] | None,
        held: Lease,
    ) -> Outcome:
        folder = self.folder(planned.stage, planned.digest)
        if folder.exists(artifacts.RECORD_FILE):
            # What is done already goes only once the tracking server, where the stage needs it, has answered.
            _ = relog and self.tracking
            folder.delete(artifacts.RECORD_FILE)
            self.store.delete(folder.uri[len(self.store.uri) + 1 :])
        self.console.say(f"{planned.stage}: {self.experiment.name}")
        started, startup_before = time.perf_counter(), self.startup_s
        done = work(folder)
        startup_s = self.startup_s - startup_before
        seconds = time.perf_counter() - started - startup_s
        made = replace(
            planned,
            files=done.files,
            outputs={**done.outputs, "metrics": done.metrics, "model_uri": done.model_uri},
            run_id=done.run_id,
            seconds=round(seconds, 3),
        )
        earlier = artifacts.records(self.store, self.experiment.name, planned.stage)
        held.check()
        record = artifacts.write_record(folder, made, after=earlier[0].created if earlier else "")
        self._shared.records[self.experiment.name, planned.stage] = record
        outcome = _outcome(record)
        outcome.startup_s, outcome.notes = startup_s, done.notes
        return outcome

    def _skip(self, record: Record, relog: Callable[[Record], Record] | None) -> Outcome:
        missing = record.run_id is not None and relog is not None and not self.tracking.has_run(record.run_id)
        if missing and relog is not None:
            self.console.say(f"{record.stage}: done already, but its run is not at this tracking URI: logged again")
            record = artifacts.write_record(record.store, relog(record))
        else:
            self.console.say(f"{record.stage}: done already on {record.created[:19].replace('T', ' ')} UTC, skipped")
        self._shared.records[self.experiment.name, record.stage] = record
        outcome = _outcome(record)
        outcome.skipped, outcome.seconds = not missing, 0.0
        return outcome


def _outcome(record: Record) -> Outcome:
    return Outcome(
        stage=record.stage,
        run_id=record.run_id,
        metrics=dict(record.outputs.get("metrics", {})),
        model_uri=record.outputs.get("model_uri"),
        artifacts={"record": record.store.path(artifacts.RECORD_FILE)}
        | {name: record.store.path(value) for name, value in record.files.items()},
        seconds=record.seconds,
        record=record,
    )


def _is_database(uri: str) -> bool:
    return uri.split("://", 1)[0].split("+", 1)[0] in {"sqlite", "postgresql", "mysql", "mssql"}


def in_ray_job() -> bool:
    """Whether this process is the driver of a submitted Ray job, whose working directory is a temporary copy."""
    return JOB_VARIABLE in os.environ


def check_inputs(paths: Iterable[str]) -> None:
    """Refuse what would be looked for in the wrong place.

    Raises:
        UsageError: a relative path in a Ray job.
    """
    for path in paths if in_ray_job() else ():
        if "://" not in path and not Path(path).is_absolute():
            raise UsageError(
                f"{path}: in a Ray job the working directory is a temporary copy; give absolute paths or URIs"
            )


def resolve_store(given: str | None, base: Path) -> str:
    """The store's absolute path or URI from the option, the environment, or the default.

    Raises:
        UsageError: in a Ray job, when it is not absolute.
    """
    value = given or os.environ.get(STORE_VARIABLE) or DEFAULT_STORE
    if "://" in value or Path(value).is_absolute():
        return value
    if in_ray_job():
        raise UsageError(
            f"--store {value}: in a Ray job the working directory is a temporary copy that Ray deletes; "
            f"give an absolute path or a URI, by --store or {STORE_VARIABLE}"
        )
    return str((base / value).resolve())


def resolve_tracking(given: str | None, store: str, base: Path) -> str:
    """MLflow's URI from the option, the environment, or a database in the store.

    Raises:
        UsageError: in a Ray job without an absolute one; a store that cannot hold a database and none is given.
    """
    value = given or os.environ.get(TRACKING_VARIABLE) or None
    if value is None:
        if in_ray_job():
            raise UsageError(f"--tracking-uri: a Ray job needs one, absolute, by the option or {TRACKING_VARIABLE}")
        if "://" in store:
            raise UsageError(f"--tracking-uri: is required, as the store {store} cannot hold a SQLite database")
        return f"sqlite:///{store}/{DATABASE_FILE}"
    scheme, separator, rest = value.partition(":///")
    if scheme == "sqlite" and separator and not rest.startswith("/"):
        if in_ray_job():
            raise UsageError(f"--tracking-uri {value}: in a Ray job the path of the database has to be absolute")
        return f"sqlite:///{(base / rest).resolve()}"
    if "://" not in value:
        raise UsageError(
            f"--tracking-uri {value}: should be a URI such as sqlite:///PATH/mlflow.db or http://HOST:PORT"
        )
    return value
