"""Token ids on disk: Arrow files of about equal size that are mapped into memory, and a manifest that is written last.

`tokens/SPLIT/NNNNN-HASH.arrow` holds one record batch with a `list<int32>` column for each kind of text (`text`, or
`source` and `target`). `tokens/SPLIT/manifest.json` names the files with their sizes and checksums; a file that it does
not name does not exist.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rnnlm.data.ragged import Ragged
from rnnlm.errors import DataError, RnnlmError
from rnnlm.storage import Store, sha256_file, trusting

SHARD_BYTES = 64 << 20
"""A shard ends with the row that reaches this size."""
_FORMAT = 1
_MOST_TOKENS = 2**31 - 1


class TokenWriter:
    """Appends rows of tokens to a split; memory stays at a few shards however many there are.

    Where shards end depends on the rows alone, not on how many were appended at a time. Nothing is visible before `close`.

    Args:
        store: the folder that has `tokens/` below it.
        split: `train`, `valid`, `gate` or `test`.
        columns: names of the columns.
        shard_bytes: size at which a shard is written.
    """

    def __init__(self, store: Store, split: str, columns: Sequence[str], *, shard_bytes: int = SHARD_BYTES) -> None:
        self._store = store
        self._split = split
        self._columns = tuple(columns)
        self._shard_bytes = shard_bytes
        self._held: list[dict[str, Ragged]] = []
        self._held_bytes = 0
        self._tokens = dict.fromkeys(self._columns, 0)
        self._shards: list[dict[str, Any]] = []

    def append(self, rows: Mapping[str, Ragged]) -> None:
        """Add rows: as many in each column.

        Raises:
            DataError: a row has more tokens than a file can hold (2^31 - 1).
        """
        if set(rows) != set(self._columns) or len({len(column) for column in rows.values()}) != 1:
            raise ValueError(f"rows should have as many values in each of the columns {', '.join(self._columns)}")
        lengths = sum(column.lengths for column in rows.values())
        sizes = np.cumsum(4 * (lengths + len(self._columns)))
        start, written = 0, 0
        while True:
            stop = int(np.searchsorted(sizes, written + self._shard_bytes - self._held_bytes)) + 1
            if stop > len(sizes):
                break
            self._hold(rows, start, stop)
            self._flush()
            start, written = stop, int(sizes[stop - 1])
        if start < len(sizes):
            self._hold(rows, start, len(sizes))
            self._held_bytes += int(sizes[-1]) - written

    def close(self, counts: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Write what is held, then the manifest, and return it.

        Args:
            counts: what the caller counted on the way, such as truncated and dropped rows; kept as it is.
        """
        if self._held:
            self._flush()
        manifest = {
            "format": _FORMAT,
            "split": self._split,
            "columns": list(self._columns),
            "rows": sum(shard["rows"] for shard in self._shards),
            "tokens": self._tokens,
            "counts": dict(counts or {}),
            "shards": self._shards,
        }
        self._store.write_json(_manifest_name(self._split), manifest)
        return manifest

    def _hold(self, rows: Mapping[str, Ragged], start: int, stop: int) -> None:
        self._held.append({name: rows[name].slice(start, stop) for name in self._columns})

    def _flush(self) -> None:
        merged = {name: Ragged.concatenate([part[name] for part in self._held]) for name in self._columns}
        self._held, self._held_bytes = [], 0
        for name, column in merged.items():
            self._tokens[name] += column.num_tokens
        num_rows = len(next(iter(merged.values())))
        data = _to_arrow(merged)
        digest = hashlib.sha256(data).hexdigest()
        name = f"tokens/{self._split}/{len(self._shards):05d}-{digest[:16]}.arrow"
        self._store.write_bytes(name, data)
        self._shards.append({"name": name, "rows": num_rows, "bytes": len(data), "sha256": digest})


def write_tokens(
    store: Store,
    split: str,
    columns: Mapping[str, Ragged],
    *,
    counts: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Write a split that is in memory, and return its manifest."""
    writer = TokenWriter(store, split, tuple(columns), shard_bytes=shard_bytes)
    writer.append(columns)
    return writer.close(counts)


def read_manifest(store: Store | str | Path, split: str) -> dict[str, Any]:
    """The manifest of a split.

    Raises:
        RnnlmError: there is none, or it is of an unknown format; the message names the file.
    """
    store = _as_store(store)
    name = _manifest_name(split)
    try:
        manifest: dict[str, Any] = store.read_json(name)
    except FileNotFoundError:
        raise RnnlmError(f"{store.path(name)}: no such file; the {split} split has not been tokenized") from None
    with trusting(store.path(name)):
        found = manifest.get("format")
    if found != _FORMAT:
        raise RnnlmError(f"{store.path(name)}: format {found!r} is not known to this release")
    return manifest


def has_split(store: Store, split: str) -> bool:
    """Whether there are tokens of a split."""
    return store.exists(_manifest_name(split))


def read_tokens(store: Store | str | Path, split: str) -> dict[str, Ragged]:
    """The columns of a split, in the memory maps of its shards.

    Raises:
        RnnlmError: the manifest or a shard is missing, or a shard is not what was written; the message names the file.
    """
    store = _as_store(store)
    manifest = read_manifest(store, split)
    with trusting(store.path(_manifest_name(split))):
        shards = [_open_shard(store, shard, manifest["columns"]) for shard in manifest["shards"]]
        return {name: Ragged.join([shard[name] for shard in shards]) for name in manifest["columns"]}


def _open_shard(store: Store, shard: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Ragged]:
    full_name = store.path(shard["name"])
    again = "make it again by: python -m pipelines.tokenize_corpus EXPERIMENT.toml --force"
    try:
        path = store.fetch(shard["name"])
        if store.local() is None and not _is_whole(path, shard):
            path = store.fetch(shard["name"], anew=True)  # the copy on this node may be the torn one
    except FileNotFoundError:
        raise RnnlmError(f"{full_name}: this shard of tokens is missing; {again}") from None
    if not _is_whole(path, shard):
        raise RnnlmError(f"{full_name}: this shard of tokens is not what was written; {again}")
    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    return {name: _from_arrow(batch.column(name)) for name in columns}


def _is_whole(path: Path, shard: Mapping[str, Any]) -> bool:
    """Whether a file has the size and the checksum of the manifest."""
    return bool(path.stat().st_size == shard["bytes"] and sha256_file(path) == shard["sha256"])


def _to_arrow(columns: Mapping[str, Ragged]) -> memoryview:
    """One record batch as an Arrow file, in a buffer of just its size."""
    arrays = []
    for name, column in columns.items():
        if column.num_tokens > _MOST_TOKENS:
            raise DataError(f"{name}: a shard of {column.num_tokens} tokens; a single document has too many")
        offsets = pa.array((column.offsets - column.offsets[0]).astype(np.int32))
        values = pa.array(column.values[column.offsets[0] : column.offsets[-1]])
        arrays.append(pa.ListArray.from_arrays(offsets, values))
    batch = pa.record_batch(arrays, names=list(columns))
    measure = pa.MockOutputStream()
    _write_file(measure, batch)
    buffer = pa.allocate_buffer(measure.size())
    _write_file(pa.FixedSizeBufferWriter(buffer), batch)
    return memoryview(buffer)


def _write_file(sink: Any, batch: pa.RecordBatch) -> None:
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _from_arrow(column: Any) -> Ragged:
    """A view of the buffers of a list column; numpy keeps the memory map alive."""
    values = column.values
    buffer = values.buffers()[1]
    flat = np.frombuffer(buffer, np.int32) if buffer is not None and buffer.size else np.zeros(0, np.int32)
    flat = flat[values.offset : values.offset + len(values)]
    return Ragged(flat, column.offsets.to_numpy(zero_copy_only=False).astype(np.int64))


def _manifest_name(split: str) -> str:
    return f"tokens/{split}/manifest.json"


def _as_store(store: Store | str | Path) -> Store:
    return store if isinstance(store, Store) else Store(str(Path(store).absolute()))
