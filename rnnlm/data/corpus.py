"""The corpus as it lies in the store: Parquet files per split, what was put aside, and a manifest that names them.

    corpus.json                      manifest, written last
    {train,valid,gate,test}/part-NUMBER-DIGEST.parquet
    rejects.parquet                  rows put aside, with file, row, reason and the beginning of the row

Columns of text: `id, text, num_bytes, in_train, tags`; of pairs: `id, source, target, num_bytes, in_train, tags`.
`num_bytes` are UTF-8 bytes of the document or target as ingested, one newline a line.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rnnlm.data.units import Reject
from rnnlm.errors import RnnlmError
from rnnlm.storage import Store, sha256_file, trusting

MANIFEST = "corpus.json"
REJECTS = "rejects.parquet"
FORMAT = 1
OUTPUT_SPLITS = ("train", "valid", "gate", "test")

ROW_GROUP_BYTES = 4 << 20
ROW_GROUP_ROWS = 50_000
FILE_BYTES = 16 << 20
"""Text bytes after which a new file begins. A file is what one task of a distributed tokenization works on."""

_COMMON = [("num_bytes", pa.int64()), ("in_train", pa.bool_()), ("tags", pa.string())]
TEXT_SCHEMA = pa.schema([("id", pa.string()), ("text", pa.large_string()), *_COMMON])
PAIR_SCHEMA = pa.schema([("id", pa.string()), ("source", pa.large_string()), ("target", pa.large_string()), *_COMMON])
REJECT_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("excerpt", pa.string()),
        ("num_rows", pa.int64()),
    ]
)


@dataclass(frozen=True)
class CorpusFile:
    """One Parquet file of a split.

    Attributes:
        name: relative to the corpus.
        units: its rows.
        text_bytes: UTF-8 bytes of its texts, both sides of pairs together.
    """

    name: str
    units: int
    text_bytes: int
    sha256: str


@dataclass
class SplitOutput:
    """One split as written.

    Attributes:
        units: documents or pairs.
        lines: lines of documents, or pairs.
        num_bytes: sum of the column of this name: what bits per byte are measured by.
        in_train: units whose source also stands in train.
        digest: SHA-256 over all rows, whatever files they lie in.
    """

    units: int = 0
    lines: int = 0
    num_bytes: int = 0
    text_bytes: int = 0
    in_train: int = 0
    digest: str = ""
    files: list[CorpusFile] = field(default_factory=list)


class SplitWriter:
    """Writes the units of one split into Parquet files of bounded size; memory is that of one row group.

    Args:
        store: the corpus.
        split: name of the folder.
        schema: `TEXT_SCHEMA` or `PAIR_SCHEMA`.
        scratch: a local folder for unfinished files.
    """

    def __init__(self, store: Store, split: str, schema: pa.Schema, scratch: Path) -> None:
        self.output = SplitOutput()
        self._store, self._split, self._schema = store, split, schema
        self._path = scratch / f"{split}.parquet"
        self._writer: pq.ParquetWriter | None = None
        self._texts = [name for name in schema.names if name in ("text", "source", "target")]
        self._held: list[pa.RecordBatch] = []
        self._held_chars = self._held_rows = 0
        self._file_bytes = self._file_units = 0
        self._digests = [_ColumnDigest() for _ in schema]

    def add(self, units: pa.RecordBatch, in_train: np.ndarray) -> None:
        """Write some units.

        Args:
            units: has all columns but `num_bytes` and `in_train`; others are left out.
            in_train: for each, bool.
        """
        batch = self._completed(units, in_train)
        chars = np.cumsum(sum(pc.utf8_length(batch.column(name)).to_numpy() for name in self._texts))
        start, before = 0, 0
        while start < len(chars):
            full = int(np.searchsorted(chars, before + ROW_GROUP_BYTES - self._held_chars)) + 1
            stop = min(full, start + ROW_GROUP_ROWS - self._held_rows, len(chars))
            self._held.append(batch.slice(start, stop - start))
            self._held_rows += stop - start
            self._held_chars += int(chars[stop - 1]) - before
            start, before = stop, int(chars[stop - 1])
            if self._held_chars >= ROW_GROUP_BYTES or self._held_rows >= ROW_GROUP_ROWS:
                self._write_group()
                if self._file_bytes >= FILE_BYTES:
                    self._finish_file()

    def close(self) -> SplitOutput:
        """Finish the last file. The split's counts and files."""
        self._write_group()
        self._finish_file()
        columns = "".join(digest.hexdigest() for digest in self._digests)
        self.output.digest = hashlib.sha256(columns.encode()).hexdigest()
        return self.output

    def _write_group(self) -> None:
        if not self._held:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd", compression_level=1)
        batch = pa.concat_batches(self._held)
        self._writer.write_batch(batch)
        for digest, column in zip(self._digests, batch.columns, strict=True):
            digest.update(column)
        self._count(batch)
        self._held, self._held_chars, self._held_rows = [], 0, 0

    def _completed(self, units: pa.RecordBatch, in_train: np.ndarray) -> pa.RecordBatch:
        """The units with all columns of the schema."""
        measured = units.column(self._texts[-1])
        ended = pc.ends_with(measured, "\n").cast(pa.int64())
        num_bytes = pc.subtract(pc.add(pc.binary_length(measured), 1), ended)
        added = {"num_bytes": num_bytes, "in_train": pa.array(in_train)}
        columns = [added[name] if name in added else units.column(name) for name in self._schema.names]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _count(self, batch: pa.RecordBatch) -> None:
        output = self.output
        texts = [batch.column(name) for name in self._texts]
        size = sum(_total(pc.binary_length(text)) for text in texts)
        output.units += batch.num_rows
        output.num_bytes += _total(batch.column("num_bytes"))
        output.text_bytes += size
        output.in_train += _total(batch.column("in_train"))
        output.lines += batch.num_rows
        if len(texts) == 1:
            newlines = _total(pc.count_substring(texts[0], "\n"))
            output.lines += newlines - _total(pc.ends_with(texts[0], "\n"))
        self._file_bytes += size
        self._file_units += batch.num_rows

    def _finish_file(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        digest = sha256_file(self._path)
        name = f"{self._split}/part-{len(self.output.files):05d}-{digest[:12]}.parquet"
        self._store.upload(self._path, name)
        self._path.unlink()
        self.output.files.append(CorpusFile(name, self._file_units, self._file_bytes, digest))
        self._file_bytes = self._file_units = 0


class _ColumnDigest:
    """SHA-256 of a column's values, whatever batches they come in."""

    def __init__(self) -> None:
        self._content = hashlib.sha256()
        self._lengths = hashlib.sha256()

    def update(self, column: pa.Array) -> None:
        """Add the values of a batch."""
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            offsets = np.frombuffer(column.buffers()[1], "<i8" if pa.types.is_large_string(column.type) else "<i4")
            start, stop = offsets[column.offset], offsets[column.offset + len(column)]
            self._content.update(memoryview(column.buffers()[2])[start:stop] if start < stop else b"")
            column = pc.binary_length(column)
        self._lengths.update(column.cast(pa.int64()).to_numpy().tobytes())

    def hexdigest(self) -> str:
        """The digest of what was added so far."""
        return self._content.hexdigest() + self._lengths.hexdigest()


def _total(column: pa.Array) -> int:
    return int(pc.sum(column).as_py() or 0)


class CorpusWriter:
    """Writes a corpus: units by split, and rejects. Use as a context.

    Args:
        store: the corpus.
        scratch: a local folder for unfinished files.
        is_text: whether the units are documents, else pairs.
    """

    def __init__(self, store: Store, scratch: Path, *, is_text: bool) -> None:
        self._store = store
        schema = TEXT_SCHEMA if is_text else PAIR_SCHEMA
        self._splits = {split: SplitWriter(store, split, schema, scratch) for split in OUTPUT_SPLITS}
        self._rejects: list[tuple[str, Reject]] = []
        self._rejects_path = scratch / REJECTS
        self._rejects_writer = pq.ParquetWriter(self._rejects_path, REJECT_SCHEMA, compression="zstd")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rejects_writer.close()

    def add(self, split: str, units: pa.RecordBatch, in_train: np.ndarray) -> None:
        """Write units into a split; see `SplitWriter.add`."""
        self._splits[split].add(units, in_train)

    def reject(self, split: str, reject: Reject) -> None:
        """Write one reject, under the split that it was read for."""
        self._rejects.append((split, reject))
        if len(self._rejects) >= 10_000:
            self._write_rejects()

    def close_rejects(self) -> None:
        """Bring the rejects into the store. They are there even where nothing else is written."""
        self._write_rejects()
        self._rejects_writer.close()
        self._store.upload(self._rejects_path, REJECTS)

    def close_splits(self) -> dict[str, SplitOutput]:
        """Finish the files of all splits."""
        return {split: writer.close() for split, writer in self._splits.items()}

    def _write_rejects(self) -> None:
        rows = [{"split": split, **reject._asdict()} for split, reject in self._rejects]
        self._rejects_writer.write_table(pa.Table.from_pylist(rows, schema=REJECT_SCHEMA))
        self._rejects.clear()


def write_manifest(store: Store, values: dict[str, Any]) -> None:
    """Commit a corpus: what its manifest does not name does not exist."""
    store.write_json(MANIFEST, {"format": FORMAT, **values})


def read_manifest(store: Store) -> dict[str, Any]:
    """What `ingest` wrote and reported.

    Raises:
        RnnlmError: there is no corpus, or one of another release.
    """
    try:
        manifest: dict[str, Any] = store.read_json(MANIFEST)
    except FileNotFoundError:
        raise RnnlmError(f"{store.path(MANIFEST)}: there is no corpus here") from None
    with trusting(store.path(MANIFEST)):
        found = manifest.get("format")
    if found != FORMAT:
        raise RnnlmError(f"{store.path(MANIFEST)}: format {found}, but this release reads {FORMAT}")
    return manifest


def split_files(store: Store, split: str) -> list[CorpusFile]:
    """The files of a split, in order; none where the corpus does not have it."""
    manifest = read_manifest(store)
    with trusting(store.path(MANIFEST)):
        written = manifest["written"].get(split, {})
        return [CorpusFile(**file) for file in written.get("files", [])]


def read_file(store: Store, file: CorpusFile, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of one file, in batches of a row group.

    Raises:
        RnnlmError: the file is missing or not the one that was written.
    """
    try:
        path = store.fetch(file.name)
    except FileNotFoundError:
        raise RnnlmError(f"{store.path(file.name)}: missing, though the corpus's manifest names it") from None
    if sha256_file(path) != file.sha256:
        raise RnnlmError(f"{store.path(file.name)}: damaged (not the bytes that were written); run ingest again")
    with pq.ParquetFile(path) as table:
        for group in range(table.num_row_groups):
            yield from table.read_row_group(group, columns=columns).to_batches()


def read_split(store: Store, split: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a split, in order."""
    for file in split_files(store, split):
        yield from read_file(store, file, columns)


def read_rows(store: Store, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a split, in order, as plain dictionaries."""
    for batch in read_split(store, split):
        yield from batch.to_pylist()


def read_texts(store: Store, split: str, column: str) -> Iterator[str]:
    """One column of a split, in order."""
    for batch in read_split(store, split, [column]):
        yield from batch.column(0).to_pylist()
