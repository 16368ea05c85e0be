"""Units between reading and writing: on disk until it is known which of them occurred before, and how they divide."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from rnnlm.data.keys import KEY_BYTES, Flags, KeyTable
from rnnlm.data.splits import Division, Keyed, source_key

_BATCH_CHARS = 1 << 20
_BATCH_ROWS = 10_000
_KEY = pa.binary(KEY_BYTES)
_TEXTS = {True: ("text",), False: ("source", "target")}


class UnitSpool:
    """The units of one given split, in an Arrow file and a table of keys; memory is that of one batch.

    Columns: `id`, `text` or `source` and `target`, `tags`, `key` and `exact` (see `Keyed`).

    Args:
        folder: an empty one, for the files.
        is_text: whether the units are documents, else pairs.
    """

    def __init__(self, folder: Path, *, is_text: bool) -> None:
        texts = [(name, pa.large_string()) for name in _TEXTS[is_text]]
        self._schema = pa.schema([("id", pa.string()), *texts, ("tags", pa.string()), ("key", _KEY), ("exact", _KEY)])
        folder.mkdir(parents=True)
        self._path = folder / "units.arrow"
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._writer = pa.ipc.new_file(self._path, self._schema, options=options)
        self._whole = KeyTable(folder / "keys")
        self._held: list[Keyed] = []
        self._held_chars = 0
        self._dropped: Flags | None = None
        self.num_units = 0
        """Units that were added."""

    def add(self, unit: Keyed) -> None:
        """Add one unit."""
        self._held.append(unit)
        self._held_chars += len(unit.unit.source) + len(unit.unit.target or "")
        if self._held_chars >= _BATCH_CHARS or len(self._held) >= _BATCH_ROWS:
            self._write()

    def close(self, *, drop_repeated: bool) -> int:
        """Finish the files. How many units had occurred before.

        Args:
            drop_repeated: whether `batches` leaves these out.
        """
        self._write()
        self._writer.close()
        repeated = Flags(self.num_units)
        for numbers in self._whole.repeats():
            repeated.set(numbers)
        self._dropped = repeated if drop_repeated else None
        return repeated.total

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The units in the order in which they were added, no batch empty. May be read more than once, after `close`."""
        start = 0
        # Not memory-mapped: mapped pages would count as memory of this process.
        with pa.OSFile(str(self._path)) as file:
            reader = pa.ipc.open_file(file)
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                dropped = None if self._dropped is None else self._dropped.part(start, batch.num_rows)
                start += batch.num_rows
                kept = batch if dropped is None or not dropped.any() else batch.filter(pa.array(~dropped))
                if kept.num_rows:
                    yield kept

    def _write(self) -> None:
        if not self._held:
            return
        units, keys, exacts, wholes = zip(*self._held, strict=True)
        ids, sources, targets, tags = zip(*((unit.id, unit.source, unit.target, unit.tags) for unit in units))
        texts = [pa.array(sources, pa.large_string())]
        if "target" in self._schema.names:
            texts.append(pa.array(targets, pa.large_string()))
        columns = [
            pa.array(ids, pa.string()),
            *texts,
            pa.array(tags, pa.string()),
            _key_column(keys),
            _key_column(exacts),
        ]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._whole.add(b"".join(wholes), np.arange(self.num_units, self.num_units + len(units)))
        self.num_units += len(units)
        self._held, self._held_chars = [], 0


def divide(batch: pa.RecordBatch, division: Division) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The units of a batch by split, their order kept. A lone document is cut, and its parts have names of their own."""
    if division.is_lone and "text" in batch.schema.names:
        yield from _cut(batch, division)
        return
    for split, mask in division.masks(key_bytes(batch, "key")):
        yield split, batch if mask.all() else batch.filter(pa.array(mask))


def _cut(batch: pa.RecordBatch, division: Division) -> Iterator[tuple[str, pa.RecordBatch]]:
    (unit,) = batch.to_pylist()
    parts = division.cut(unit["text"])
    if len(parts) == 1:
        yield division.rest, batch
        return
    for split, text in parts.items():
        key = source_key(text)
        name = unit["id"] if split == division.rest else f"{unit['id']}#{split}"
        part = unit | {"id": name, "text": text, "key": key, "exact": key}
        yield split, pa.RecordBatch.from_pylist([part], schema=batch.schema)


def _key_column(keys: tuple[bytes, ...]) -> pa.Array:
    """Keys as a column."""
    return pa.FixedSizeBinaryArray.from_buffers(_KEY, len(keys), [None, pa.py_buffer(b"".join(keys))])


def key_bytes(batch: pa.RecordBatch, name: str) -> memoryview:
    """The keys of a column one after another."""
    column = batch.column(name)
    start = column.offset * KEY_BYTES
    return memoryview(column.buffers()[1])[start : start + len(column) * KEY_BYTES]
