"""Hashes of many units on disk: which occur again, and which also stand in another set, in a memory that does not grow.

Records are spread over files by the first bits of their keys, so that equal keys meet in one file, and each file is
small enough to be sorted in memory. A file that is not is spread again by the next bits.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

KEY_BYTES = 16
KNOWN = -1
"""The number of a key that others are compared with."""

_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<i8")])
_HELD_RECORDS = 1 << 17
_BITS = 6
"""A table has 2^6 files."""
_DEEPEST = 64 // _BITS - 1


class KeyTable:
    """Keys of 16 bytes, each with a number. Nothing lies on disk before there are more than `held_records`.

    A single key that occurs more often than `held_records` times is held whole, 24 bytes an occurrence.

    Args:
        folder: for its files; made when it is needed.
        held_records: most records in memory, of 24 bytes each.
        depth: how many groups of bits were used up.
    """

    def __init__(self, folder: Path, *, held_records: int = _HELD_RECORDS, depth: int = 0) -> None:
        self._folder = folder
        self._held_records = held_records
        self._depth = depth
        self._held: list[np.ndarray] = []
        self._num_held = 0

    def add(self, keys: bytes | memoryview, numbers: np.ndarray) -> None:
        """Add keys, one after another, and as many numbers: 0 and more, or `KNOWN`."""
        records = np.empty(len(numbers), _RECORD)
        halves = np.frombuffer(keys, "<u8").reshape(-1, 2)
        records["high"], records["low"], records["number"] = halves[:, 0], halves[:, 1], numbers
        self._hold(records)

    def repeats(self) -> Iterator[np.ndarray]:
        """The numbers of all records whose key has a lower number elsewhere, in any order."""
        for records, first in self._groups():
            yield records["number"][first != np.arange(len(records))]

    def known(self) -> Iterator[np.ndarray]:
        """The numbers of all records whose key is there with the number `KNOWN` too, in any order."""
        for records, first in self._groups():
            numbers = records["number"]
            yield numbers[(numbers[first] == KNOWN) & (numbers != KNOWN)]

    def _groups(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Records with equal keys side by side, lower numbers first; and for each the place of the first of its key."""
        for part in self._parts():
            records = part[np.lexsort((part["number"], part["low"], part["high"]))]
            fresh = np.ones(len(records), bool)
            fresh[1:] = (records["high"][1:] != records["high"][:-1]) | (records["low"][1:] != records["low"][:-1])
            yield records, np.maximum.accumulate(np.where(fresh, np.arange(len(records)), 0))

    def _parts(self) -> Iterator[np.ndarray]:
        """All records in parts, so that equal keys are in one."""
        if not self._folder.exists():
            if self._held:
                yield np.concatenate(self._held)
            return
        self._flush()
        for path in sorted(self._folder.iterdir()):
            if path.stat().st_size <= self._held_records * _RECORD.itemsize or self._depth == _DEEPEST:
                yield np.fromfile(path, _RECORD)
            else:
                yield from self._spread_again(path)

    def _spread_again(self, path: Path) -> Iterator[np.ndarray]:
        inner = KeyTable(path.with_suffix(".parts"), held_records=self._held_records, depth=self._depth + 1)
        with path.open("rb") as stream:
            while raw := stream.read(self._held_records * _RECORD.itemsize):
                inner._hold(np.frombuffer(raw, _RECORD))
        yield from inner._parts()
        shutil.rmtree(path.with_suffix(".parts"))

    def _hold(self, records: np.ndarray) -> None:
        self._held.append(records)
        self._num_held += len(records)
        if self._num_held > self._held_records:
            self._flush()

    def _flush(self) -> None:
        """Append what is held to the files."""
        if not self._held:
            return
        records = np.concatenate(self._held)
        self._held, self._num_held = [], 0
        file_numbers = (records["high"] >> np.uint64(64 - _BITS * (self._depth + 1))) & np.uint64((1 << _BITS) - 1)
        order = np.argsort(file_numbers, kind="stable")
        bounds = np.searchsorted(file_numbers[order], np.arange((1 << _BITS) + 1))
        self._folder.mkdir(parents=True, exist_ok=True)
        for number in range(1 << _BITS):
            part = records[order[bounds[number] : bounds[number + 1]]]
            if len(part):
                with (self._folder / f"{number:02d}").open("ab") as stream:
                    part.tofile(stream)


class Flags:
    """A bit for each of `count` units, false at first."""

    def __init__(self, count: int) -> None:
        self._bits = np.zeros(-(-count // 8), np.uint8)

    @property
    def total(self) -> int:
        """How many are true."""
        return int(np.bitwise_count(self._bits).sum())

    def set(self, numbers: np.ndarray) -> None:
        """Make the flags of some units true."""
        np.bitwise_or.at(self._bits, numbers >> 3, np.left_shift(1, numbers & 7).astype(np.uint8))

    def part(self, start: int, count: int) -> np.ndarray:
        """The flags of `count` units from `start` on, bool."""
        packed = self._bits[start >> 3 : (start + count + 7) >> 3]
        return np.unpackbits(packed, bitorder="little")[start & 7 :][:count].astype(bool)
