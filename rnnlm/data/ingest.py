"""Sources to a corpus: duplicates, blanks, splits, and the overlap of valid and test with train; every row counted."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from rnnlm.data.config import DataConfig
from rnnlm.data.corpus import REJECTS, CorpusWriter, SplitOutput, write_manifest
from rnnlm.data.rows import BLANK
from rnnlm.data.sources import SPLITS, Origin, Sources
from rnnlm.data.splits import Divider, Keyed, keyed
from rnnlm.data.units import Reject, RowCounts, Unit
from rnnlm.errors import DataError
from rnnlm.storage import Store
from rnnlm.text.normalize import Normalizer


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


@dataclass
class _TrainKeys:
    """Hashes of the sources that are in train, as they are in the files and normalised."""

    exact: set[bytes] = field(default_factory=set)
    normalized: set[bytes] = field(default_factory=set)


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
    with CorpusWriter(store, is_text=sources.is_text) as writer:
        work = _Ingest(sources, data, seed, writer, progress)
        for split in SPLITS:
            if split in sources.splits:
                work.read_split(split, sources.splits[split])
        writer.close_rejects()
        share = _check_readings(work.readings, sources, data, store)
        report = IngestReport(work.readings, writer.close_splits(), share)
    write_manifest(store, {"is_text": sources.is_text, "inputs": sources.digests, **report.as_dict()})
    return report


class _Ingest:
    """The state of one ingest run."""

    def __init__(
        self, sources: Sources, data: DataConfig, seed: int, writer: CorpusWriter, progress: Progress | None
    ) -> None:
        self.readings: dict[str, SplitReading] = {}
        self._given = set(sources.splits)
        self._total = sources.num_bytes or None
        self._data, self._seed, self._writer, self._progress = data, seed, writer, progress
        self._normalize = Normalizer(data.normalize)
        self._train = _TrainKeys()
        self._done = 0
        self._gate = Divider({"gate": data.gate_share}, "valid", seed, "gate")

    def read_split(self, split: str, origin: Origin) -> None:
        """Read one given split to its end, and write its units where they belong."""
        rows = RowCounts()
        reading = self.readings[split] = SplitReading()
        units = self._accepted(split, self._units(split, origin, rows), reading)
        for target, unit in self._divided(split, units):
            self._write(target, unit, reading, given=split)
        reading.rows, reading.separators, reading.files = rows.read, rows.separators, rows.files
        reading.check(rows)

    def _units(self, split: str, origin: Origin, rows: RowCounts) -> Iterator[Unit]:
        """Units as they are read; rejects go to their file."""
        for number, item in enumerate(origin.items(self._data, rows)):
            if isinstance(item, Reject):
                self._reject(split, item)
                continue
            self._done += len(item.source) + len(item.target or "")
            if self._progress is not None and number % 1_000 == 0:
                self._progress.update(self._done, self._total, split)
            yield item

    def _accepted(self, split: str, units: Iterator[Unit], reading: SplitReading) -> Iterator[Keyed]:
        """Units that stay. Train loses blank ones and, if so configured, repeated ones; a given valid or test none."""
        seen: set[bytes] = set()
        for unit in units:
            reading.units += 1
            if unit.is_blank:
                reading.blank += 1
                if split == "train":
                    reading.blank_quarantined += 1
                    self._reject(split, unit.reject(BLANK))
                    continue
            with_keys = keyed(unit, self._normalize)
            if with_keys.whole in seen:
                reading.duplicates += 1
                if split == "train" and self._data.duplicates == "drop":
                    reading.duplicates_dropped += 1
                    continue
            seen.add(with_keys.whole)
            reading.kept += 1
            yield with_keys

    def _divided(self, split: str, units: Iterator[Keyed]) -> Iterator[tuple[str, Keyed]]:
        """Each unit with the split that it belongs to: valid and test are cut from train where they are not given."""
        if split == "train":
            shares = {"valid": self._data.valid_share, "test": self._data.test_share}
            missing = {name: share for name, share in shares.items() if name not in self._given}
            divided = _divide(Divider(missing, "train", self._seed, "splits"), units)
        else:
            divided = ((split, unit) for unit in units)
        for target, unit in divided:
            if target == "valid":
                yield from self._gate.feed(unit)
            else:
                yield target, unit
        yield from self._gate.finish()

    def _write(self, target: str, unit: Keyed, reading: SplitReading, *, given: str) -> None:
        in_train = False
        if target == "train":
            self._train.exact.add(unit.exact)
            self._train.normalized.add(unit.key)
        elif given != "train":
            in_train = unit.exact in self._train.exact
            reading.in_train += in_train
            reading.in_train_normalized += unit.key in self._train.normalized
        reading.went_to[target] = reading.went_to.get(target, 0) + 1
        self._writer.add(target, unit.unit, in_train=in_train)

    def _reject(self, split: str, reject: Reject) -> None:
        quarantined = self.readings[split].quarantined
        quarantined[reject.reason] = quarantined.get(reject.reason, 0) + reject.num_rows
        self._writer.reject(split, reject)


def _divide(divider: Divider, units: Iterator[Keyed]) -> Iterator[tuple[str, Keyed]]:
    for unit in units:
        yield from divider.feed(unit)
    yield from divider.finish()


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
