"""Records: what a stage wrote, from what, with which settings. A record is written last; without it nothing was done."""

import datetime
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rnnlm import faults
from rnnlm.config import digest
from rnnlm.errors import RnnlmError
from rnnlm.storage import Store

RECORD_FILE = "artifact.json"
CORPUS_FOLDER = "corpus"
"""Where a record of ingest keeps the corpus."""
TOKENS_FOLDER = "tokens"
"""Where a record of tokenize_corpus keeps tokenizer and token files."""
INIT_FILE = "init.safetensors"
"""In a training's folder: the weights that it begins with, where these are another model's."""
FORMAT_NUMBERS = {"ingest": 1, "tokenize_corpus": 1, "train": 1, "tune": 1, "evaluate": 1, "register": 2}
"""The number of each stage's output format. A change that makes old outputs unreadable raises it."""


@dataclass(frozen=True)
class Record:
    """What one stage wrote.

    Attributes:
        stage: name of the stage.
        experiment: name of the experiment.
        digest: identity: SHA-256 over settings, inputs and format number.
        settings: this stage's part of the experiment.
        inputs: name of each input to its digest.
        files: names to paths relative to the record's folder.
        outputs: counts, settings and figures.
        run_id: its MLflow run, if it has one.
        seconds: wall time of the work.
        created: time of the record, ISO 8601 in UTC.
        commit: git commit of the code, empty where unknown; recorded, not compared.
        uri: the record's folder; not stored.
    """

    stage: str
    experiment: str
    digest: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    run_id: str | None = None
    seconds: float = 0.0
    created: str = ""
    commit: str = ""
    format_number: int = 1
    uri: str = ""

    @property
    def store(self) -> Store:
        """The folder with this record and what it names."""
        return Store(self.uri)


def identity(stage: str, settings: dict[str, Any], inputs: dict[str, str]) -> str:
    """The digest that says whether a record matches."""
    return digest({"stage": stage, "settings": settings, "inputs": inputs, "format": FORMAT_NUMBERS[stage]})


def folder(store: Store, experiment: str, stage: str, record_digest: str) -> Store:
    """Where a stage with this identity writes."""
    return store.child("experiments", experiment, f"{stage}-{record_digest[:16]}")


def lease_name(experiment: str, stage: str, record_digest: str) -> str:
    """The lease of who does this work, in the store: beside the folder, which may be deleted meanwhile."""
    return f"experiments/{experiment}/{stage}-{record_digest[:16]}.lease.json"


def write_record(store: Store, record: Record, after: str = "") -> Record:
    """Commit a stage's work by writing its record, last, into the folder that the stage wrote into.

    Args:
        store: the folder.
        record: what was done.
        after: the time of an earlier record. This one is newer, even if the clock was set back in between.
    """
    created = now()
    if created <= after:
        created = (datetime.datetime.fromisoformat(after) + datetime.timedelta(microseconds=1)).isoformat()
    values = asdict(record) | {"created": created, "format_number": FORMAT_NUMBERS[record.stage]}
    values["commit"] = record.commit or git_commit()
    values.pop("uri")
    faults.point("record.write")
    store.write_json(RECORD_FILE, values)
    faults.point("record.written")
    return Record(**values, uri=store.uri)


def read_record(store: Store) -> Record | None:
    """The record in a folder, or None where the stage has not finished.

    Raises:
        RnnlmError: the file is there but is not a record.
    """
    try:
        values = store.read_json(RECORD_FILE)
    except FileNotFoundError:
        return None
    try:
        return Record(**values, uri=store.uri)
    except TypeError as error:
        raise RnnlmError(f"{store.path(RECORD_FILE)}: not a record ({error})") from None


def records(store: Store, experiment: str, stage: str) -> list[Record]:
    """All records of a stage of an experiment, newest first."""
    names = [name for name in store.files(f"experiments/{experiment}") if name.endswith(f"/{RECORD_FILE}")]
    found = []
    for name in names:
        parts = name.split("/")
        if len(parts) == 4 and parts[2].rpartition("-")[0] == stage:
            record = read_record(store.child(*parts[:-1]))
            if record is not None:
                found.append(record)
    return sorted(found, key=lambda record: record.created, reverse=True)


def now() -> str:
    """The time, ISO 8601 in UTC, to the microsecond."""
    return datetime.datetime.now(datetime.UTC).isoformat()


def git_commit() -> str:
    """Commit of the working tree that holds this code; empty where there is none."""
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
