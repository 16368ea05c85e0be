"""Find what a store no longer needs, and on request delete it.

Kept in any case: the newest records of each stage of each experiment, what registered versions with an alias were made from,
whatever those were made from in turn, the model that wrote an output in this store, and everything that somebody may be at
work on.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from rnnlm import artifacts
from rnnlm.artifacts import RECORD_FILE, Record
from rnnlm.batch.lease import LEASE_FILE, current_holder
from rnnlm.stages.context import Outcome, Surroundings
from rnnlm.storage import Store

BUSY_S = 3_600.0
"""A folder in which something changed within this time may be in use."""
_DAY_S = 86_400.0


@dataclass(frozen=True)
class Superfluous:
    """Something that could go.

    Attributes:
        kind: `records` (of superseded settings), `unfinished` (work that was never committed), `checkpoints` (of finished
            trainings, but for the one that counts), `logs`.
        name: its path in the store.
        num_bytes: its size.
        age_days: since it was last changed.
    """

    kind: str
    name: str
    num_bytes: int
    age_days: float


def run(where: Surroundings, *, keep_runs: int, older_than_days: float, delete: bool) -> Outcome:
    """List what could go, by kind; delete it if asked to.

    Args:
        where: the store, and the tracking server whose aliases count.
        keep_runs: newest records of each stage of each experiment that stay.
        older_than_days: what is younger stays.
        delete: whether it goes.
    """
    found = list(superfluous(where.store, aliased_runs(where), keep_runs, older_than_days))
    kinds = {kind: [each for each in found if each.kind == kind] for kind in sorted({each.kind for each in found})}
    console = where.console
    for kind, items in kinds.items():
        console.say(f"{kind}: {len(items):,}, {_size(sum(item.num_bytes for item in items))}")
        console.table(
            ("size", "days", kind), [(_size(each.num_bytes), f"{each.age_days:.1f}", each.name) for each in items]
        )
    if delete:
        for each in found:
            _delete(where.store, each.name)
    total = sum(each.num_bytes for each in found)
    done = "deleted" if delete else "could go; --yes deletes it"
    note = f"  {_size(total)} in {len(found):,} places {done}" if found else "  nothing could go"
    figures = {"prune/bytes": float(total), "prune/items": float(len(found))}
    return Outcome("prune", metrics=figures, notes=[note], skipped=not found)


def aliased_runs(where: Surroundings) -> set[str]:
    """The MLflow runs of all registered versions that have an alias."""
    from rnnlm.integrations.mlflow_registry import Registry

    return Registry(where.tracking).aliased_runs()


def superfluous(
    store: Store, aliased: set[str], keep_runs: int, older_than_days: float, now: float | None = None
) -> Iterator[Superfluous]:
    """What could go.

    Args:
        store: the whole store.
        aliased: runs whose records stay.
        keep_runs: newest records of each stage of each experiment that stay.
        older_than_days: what is younger stays.
        now: seconds since 1970.
    """
    now = time.time() if now is None else now
    changed = store.changes()
    folders = _folders(changed)
    records = {name: record for name in folders if (record := artifacts.read_record(store.child(name))) is not None}
    kept = _kept(store, records, aliased, keep_runs)

    def item(kind: str, name: str) -> Iterator[Superfluous]:
        below = {file: time_ for file, time_ in changed.items() if file == name or file.startswith(f"{name}/")}
        age_s = now - max(below.values())
        if age_s >= max(older_than_days * _DAY_S, BUSY_S):
            yield Superfluous(kind, name, store.size_bytes(name), age_s / _DAY_S)

    for name in folders:
        if name not in records:
            yield from (each for each in item("unfinished", name) if not _is_held(store, name))
        elif name not in kept:
            yield from item("records", name)
        else:
            for checkpoint in _spare_checkpoints(records[name], changed, name):
                yield from item("checkpoints", checkpoint)
    for file in changed:
        if file.startswith("logs/"):
            yield from item("logs", file)


def _is_held(store: Store, name: str) -> bool:
    """Whether somebody is at work on a folder, whatever the clock says of its files."""
    return any(
        current_holder(place, file)
        for place, file in ((store, f"{name}.{LEASE_FILE}"), (store.child(name), LEASE_FILE))
    )


def _folders(changed: Mapping[str, float]) -> list[str]:
    """The folders of stages, `experiments/NAME/STAGE-DIGEST`."""
    parts = (file.split("/") for file in changed if file.startswith("experiments/"))
    return sorted({"/".join(each[:3]) for each in parts if len(each) > 3})


def _kept(store: Store, records: Mapping[str, Record], aliased: set[str], keep_runs: int) -> set[str]:
    """Names of the records that stay."""
    by_digest = {record.digest: name for name, record in records.items()}
    writers = _writers(store)
    kept = {
        name
        for name, record in records.items()
        if record.run_id in aliased or record.outputs.get("package_digest") in writers
    }
    groups: dict[tuple[str, str], list[tuple[datetime, str]]] = {}
    for name, record in records.items():
        created = datetime.fromisoformat(record.created)
        groups.setdefault((record.experiment, record.stage), []).append((created, name))
    for group in groups.values():
        kept |= {name for _, name in sorted(group, reverse=True)[:keep_runs]}
    waiting = list(kept)
    while waiting:
        record = records[waiting.pop()]
        origins = {
            by_digest[value] for value in (*record.inputs.values(), record.outputs.get("train")) if value in by_digest
        }
        waiting += origins - kept
        kept |= origins
    return kept


def _writers(store: Store) -> set[str]:
    """Digests of the models that wrote outputs in this store."""
    from rnnlm.batch.job import MANIFEST_FILE  # loads pyarrow, which `--help` can do without

    manifests = [name for name in store.files() if "/run=" in name and name.endswith(f"/{MANIFEST_FILE}")]
    return {str(store.read_json(name)["model"]["digest"]) for name in manifests}


def _spare_checkpoints(record: Record, changed: Mapping[str, float], name: str) -> list[str]:
    """Checkpoints of a finished training that nothing reads any more."""
    best = record.files.get("checkpoint")
    if best is None:
        return []
    prefix = f"{name}/checkpoints/"
    found = {f"{prefix}{file[len(prefix) :].split('/')[0]}" for file in changed if file.startswith(prefix)}
    return sorted(found - {f"{name}/{best}"})


def _delete(store: Store, name: str) -> None:
    # What commits a folder goes first, so that half a folder never counts as whole.
    for commit in (RECORD_FILE, "checkpoint.json"):
        if store.exists(f"{name}/{commit}"):
            store.delete(f"{name}/{commit}")
    store.delete(name)


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:,.1f} kB"
