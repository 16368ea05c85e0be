"""Sources to a corpus: duplicates, blanks, splits, and the overlap of valid and test with train; every row counted."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from rnnlm.data.config import DataConfig
from rnnlm.data.corpus import REJECTS, CorpusWriter, SplitOutput, write_manifest
from rnnlm.data.keys import KNOWN, Flags, KeyTable
from rnnlm.data.rows import BLANK
from rnnlm.data.sources import SPLITS, Origin, Sources
from rnnlm.data.splits import Division, keyed
from rnnlm.data.spool import UnitSpool, divide, key_bytes
from rnnlm.data.units import Reject, RowCounts, Unit
from rnnlm.errors import DataError
from rnnlm.storage import Store
from rnnlm.text.normalize import Normalizer

_SCRATCH = ".scratch"


class Progress(Protocol):
    """Told how far the work is."""

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        """Bytes done so far, and in all."""
        ...


@dataclass
class SplitReading:
    """What became of one given split. `units == kept + duplicates_dropped + blank_quarantined`.

    Attributes:
        rows: lines of plain text, or rows of tables.
        separators: blank lines between documents.
        units: documents or pairs that the rows made.
        kept: units that were written, wherever they went.
        quarantined: rows put aside, by reason.
        duplicates: units that had occurred before in this split.
        blank: units with nothing in them; put aside in train, kept in a given valid or test.
        in_train: units whose source stands in train, compared as they are in the files.
        in_train_normalized: the same, compared after normalization.
        went_to: split to the number of units that were written there.
        files: file to its rows.
    """

    rows: int = 0
    separators: int = 0
    units: int = 0
    kept: int = 0
    quarantined: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    duplicates_dropped: int = 0
    blank: int = 0
    blank_quarantined: int = 0
    in_train: int = 0
    in_train_normalized: int = 0
    went_to: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)

    def check(self, rows: RowCounts) -> None:
        """No row and no unit may be lost."""
        rows.check()
        assert self.units == self.kept + self.duplicates_dropped + self.blank_quarantined, f"a unit was lost: {self}"


@dataclass
class IngestReport:
    """What was read, by given split, and what was written, by resulting split."""

    read: dict[str, SplitReading]
    written: dict[str, SplitOutput]
    reject_share: float

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-compatible values."""
        return asdict(self)


def ingest(
    sources: Sources, data: DataConfig, *, seed: int, store: Store, progress: Progress | None = None
) -> IngestReport:
    """Read everything and write the corpus, its manifest last.

    Args:
        sources: what `check_sources` found.
        data: the same configuration.
        seed: of the experiment.
        store: folder of the corpus.
        progress: told about the bytes of text that went by.

    Raises:
        DataError: nothing is left of a given split, or too many rows were put aside; the rejects are in the store.
    """
    with _scratch(store) as scratch, CorpusWriter(store, scratch, is_text=sources.is_text) as writer:
        work = _Ingest(sources, data, seed, writer, scratch, progress)
        for split in SPLITS:
            if split in sources.splits:
                work.read_split(split, sources.splits[split])
        writer.close_rejects()
        share = _check_readings(work.readings, sources, data, store)
        work.write_all()
        report = IngestReport(work.readings, writer.close_splits(), share)
    write_manifest(store, {"is_text": sources.is_text, "inputs": sources.digests, **report.as_dict()})
    return report


@contextmanager
def _scratch(store: Store) -> Iterator[Path]:
    """A folder for what was read while it is not known where it goes: beside the corpus where the store is a local folder.

    What a process that was killed left there is deleted.
    """
    folder = store.local(_SCRATCH)
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="rnnlm-ingest-") as temporary:
            yield Path(temporary)
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    except OSError as error:
        if error.filename is None:  # Arrow does not say which file it could not write
            error.filename = str(folder)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Ingest:
    """The state of one ingest run: every given split is read first, then all are divided and written."""

    def __init__(
        self,
        sources: Sources,
        data: DataConfig,
        seed: int,
        writer: CorpusWriter,
        scratch: Path,
        progress: Progress | None,
    ) -> None:
        self.readings: dict[str, SplitReading] = {}
        self._sources, self._data, self._seed = sources, data, seed
        self._writer, self._scratch, self._progress = writer, scratch, progress
        self._normalize = Normalizer(data.normalize)
        self._spools: dict[str, UnitSpool] = {}
        self._done = 0

    def read_split(self, split: str, origin: Origin) -> None:
        """Read one given split to its end.

        Train loses blank units and, if so configured, repeated ones; a given valid or test none.
        """
        rows = RowCounts()
        reading = self.readings[split] = SplitReading()
        spool = self._spools[split] = UnitSpool(self._scratch / split, is_text=self._sources.is_text)
        for unit in self._units(split, origin, rows):
            reading.units += 1
            if unit.is_blank:
                reading.blank += 1
                if split == "train":
                    reading.blank_quarantined += 1
                    self._reject(split, unit.reject(BLANK))
                    continue
            spool.add(keyed(unit, self._normalize))
        drop = split == "train" and self._data.duplicates == "drop"
        reading.duplicates = spool.close(drop_repeated=drop)
        reading.duplicates_dropped = reading.duplicates if drop else 0
        reading.kept = spool.num_units - reading.duplicates_dropped
        reading.rows, reading.separators, reading.files = rows.read, rows.separators, rows.files
        reading.check(rows)

    def write_all(self) -> None:
        """Write the units of every given split where they belong."""
        divided = {split: _Divided(spool, self._divisions(split, spool)) for split, spool in self._spools.items()}
        train = divided.pop("train", None)
        overlap = _Overlap(self._scratch / "overlap")
        if train is not None:
            for target, units in train:
                if target == "train" and divided:
                    overlap.add_train(units)
                self._write("train", target, units, np.zeros(units.num_rows, bool))
        for units in (units for split in divided.values() for _, units in split):
            overlap.add_other(units)
        overlap.compare()
        for given, split in divided.items():
            reading = self.readings[given]
            for target, units in split:
                in_train, normalized = overlap.next_flags(units.num_rows)
                reading.in_train += int(in_train.sum())
                reading.in_train_normalized += int(normalized.sum())
                self._write(given, target, units, in_train)

    def _divisions(self, split: str, spool: UnitSpool) -> list[Division]:
        """How a given split divides: valid and test are cut from train where they are not given, the gate from valid."""
        missing = {
            name: share
            for name, share in (("valid", self._data.valid_share), ("test", self._data.test_share))
            if split == "train" and name not in self._sources.splits
        }
        keys = (key_bytes(batch, "key") for batch in spool.batches())
        first = Division.plan(keys, missing, rest=split, seed=self._seed, purpose="splits")
        if "valid" not in (split, *first.shares):
            return [first]
        valid = (units for target, units in _Divided(spool, [first]) if target == "valid")
        keys = (key_bytes(units, "key") for units in valid)
        gate = Division.plan(keys, {"gate": self._data.gate_share}, rest="valid", seed=self._seed, purpose="gate")
        return [first, gate]

    def _units(self, split: str, origin: Origin, rows: RowCounts) -> Iterator[Unit]:
        """Units as they are read; rejects go to their file."""
        for number, item in enumerate(origin.items(self._data, rows)):
            if isinstance(item, Reject):
                self._reject(split, item)
                continue
            self._done += len(item.source) + len(item.target or "")
            if self._progress is not None and number % 1_000 == 0:
                self._progress.update(self._done, self._sources.num_bytes or None, split)
            yield item

    def _write(self, given: str, target: str, units: pa.RecordBatch, in_train: np.ndarray) -> None:
        went_to = self.readings[given].went_to
        went_to[target] = went_to.get(target, 0) + units.num_rows
        self._writer.add(target, units, in_train)

    def _reject(self, split: str, reject: Reject) -> None:
        quarantined = self.readings[split].quarantined
        quarantined[reject.reason] = quarantined.get(reject.reason, 0) + reject.num_rows
        self._writer.reject(split, reject)


@dataclass(frozen=True)
class _Divided:
    """The units of a given split in batches, each with the split that it goes to; may be read more than once."""

    spool: UnitSpool
    divisions: list[Division]
    """The first divides all units; a second one, what the first gives to valid."""

    def __iter__(self) -> Iterator[tuple[str, pa.RecordBatch]]:
        first, *gate = self.divisions
        for batch in self.spool.batches():
            for target, units in divide(batch, first):
                if target == "valid" and gate:
                    yield from divide(units, gate[0])
                else:
                    yield target, units


class _Overlap:
    """Which sources of given valid and test splits also stand in train: as they are in the files, and normalised."""

    def __init__(self, folder: Path) -> None:
        self._tables = {name: KeyTable(folder / name) for name in ("exact", "key")}
        self._flags: list[Flags] = []
        self._num_units = self._read = 0

    def add_train(self, units: pa.RecordBatch) -> None:
        """Take units of train."""
        for name, table in self._tables.items():
            table.add(key_bytes(units, name), np.full(units.num_rows, KNOWN))

    def add_other(self, units: pa.RecordBatch) -> None:
        """Take units of other splits, in order."""
        numbers = np.arange(self._num_units, self._num_units + units.num_rows)
        for name, table in self._tables.items():
            table.add(key_bytes(units, name), numbers)
        self._num_units += units.num_rows

    def compare(self) -> None:
        """Find out which are in train, after everything was added."""
        for table in self._tables.values():
            flags = Flags(self._num_units)
            for numbers in table.known():
                flags.set(numbers)
            self._flags.append(flags)

    def next_flags(self, count: int) -> list[np.ndarray]:
        """For the next units of other splits: which are in train as they are, and normalised."""
        start, self._read = self._read, self._read + count
        return [flags.part(start, count) for flags in self._flags]


def _check_readings(readings: dict[str, SplitReading], sources: Sources, data: DataConfig, store: Store) -> float:
    """The share of rows that were put aside.

    A blank line of text whose lines are its documents is no fault, and not counted.
    """
    reasons: Counter[str] = Counter()
    rows = 0
    for reading in readings.values():
        reasons.update(reading.quarantined)
        rows += reading.rows - reading.separators
    if sources.is_text and data.unit == "line":
        rows -= reasons.pop(BLANK, 0)
    share = reasons.total() / max(1, rows)
    shown = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    where = f"see {store.path(REJECTS)}"
    empty = [split for split, reading in readings.items() if not reading.kept]
    if empty:
        names = " and ".join(f"data.{split}" for split in empty)
        raise DataError(f"{names}: nothing is left of {rows:,} rows ({shown or 'only blank lines'}; {where})")
    if share > data.max_reject_share:
        raise DataError(
            f"{reasons.total():,} of {rows:,} rows were put aside ({shown}), a share of {share:.3g}, "
            f"above data.max_reject_share = {data.max_reject_share:g}; {where}"
        )
    return share
