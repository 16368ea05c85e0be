"""Rows of unequal length in two flat arrays.

Shapes: N all values, R rows.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

_READ_AT_ONCE = 1 << 20
"""Counting widens ids to 64 bits."""


class Joined:
    """Arrays one after another, read as if they were one: where they lie in memory maps, only what is read is in memory.

    Args:
        parts: int32, each [N_i].
    """

    dtype = np.dtype(np.int32)

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in self._parts])]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, key: Any) -> np.ndarray:
        """A view or a copy: of a slice without a step, or of an array of numbers of values, negative ones from the end."""
        if isinstance(key, slice):
            start, stop, _ = key.indices(len(self))
            first = int(np.searchsorted(self._starts, start, "right")) - 1
            last = int(np.searchsorted(self._starts, stop, "left")) if start < stop else first
            pieces = [
                self._parts[number][max(0, start - int(self._starts[number])) : stop - int(self._starts[number])]
                for number in range(first, last)
            ]
            return pieces[0] if len(pieces) == 1 else np.concatenate([np.zeros(0, self.dtype), *pieces])
        index = np.where(key < 0, key + len(self), key)
        found = np.empty(index.shape, self.dtype)
        number = np.searchsorted(self._starts, index, "right") - 1
        for each in np.unique(number):
            here = number == each
            found[here] = self._parts[each][index[here] - self._starts[each]]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("values of several arrays are one array only as a copy")
        return np.asarray(self[:], dtype)


@dataclass(frozen=True)
class Ragged:
    """Token ids of many rows: row r is `values[offsets[r]:offsets[r + 1]]`."""

    values: np.ndarray | Joined
    """int32 [N]; may lie in read-only memory maps."""
    offsets: np.ndarray
    """int64 [R + 1], never falling."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Values in each row, int64 [R]."""
        return np.diff(self.offsets)

    @property
    def num_tokens(self) -> int:
        """Values in all rows together."""
        return int(self.offsets[-1] - self.offsets[0])

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[int] | np.ndarray]) -> "Ragged":
        """Copy rows into one."""
        arrays = [np.asarray(row, np.int32) for row in rows]
        offsets = np.zeros(len(arrays) + 1, np.int64)
        np.cumsum([len(array) for array in arrays], out=offsets[1:])
        return cls(np.concatenate(arrays) if arrays else np.zeros(0, np.int32), offsets)

    @classmethod
    def concatenate(cls, parts: Sequence["Ragged"]) -> "Ragged":
        """All rows of all parts, in order. One part is given back as it is, without a copy."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls.from_rows([])
        joined = cls.join(parts)
        return cls(np.asarray(joined.values), joined.offsets)

    @classmethod
    def join(cls, parts: Sequence["Ragged"]) -> "Ragged":
        """All rows of all parts, in order, with the values left where they are."""
        if len(parts) == 1:
            return parts[0]
        values = Joined([part.values[part.offsets[0] : part.offsets[-1]] for part in parts])
        ends = np.cumsum(np.concatenate([np.zeros(1, np.int64), *(part.lengths for part in parts)]))
        return cls(values, ends)

    def slice(self, start: int, stop: int) -> "Ragged":
        """The rows from `start` to before `stop`, as a view."""
        offsets = self.offsets[start : stop + 1]
        return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The values of some rows one after another, int32."""
        index = concatenated_ranges(self.offsets[rows], self.lengths[rows])
        return np.asarray(self.values[index], np.int32)


def concatenated_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers `starts[i], starts[i] + 1, ...`, `lengths[i]` of them, for every i one after another, int64."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - ends + lengths, lengths) + np.arange(total)


def spread_pieces(values: np.ndarray | Joined, at_most: int | None = None) -> Iterator[np.ndarray]:
    """An array in pieces that fit into memory; of one longer than `at_most` only about so much, from all over it."""
    starts = range(0, len(values), _READ_AT_ONCE)
    if at_most is not None:
        starts = starts[:: max(1, -(-len(values) // at_most))]
    for start in starts:
        yield values[start : start + _READ_AT_ONCE]


def count_ids(values: np.ndarray | Joined, vocab_size: int, at_most: int | None = None) -> np.ndarray:
    """How often each id occurs, int64 [V].

    Args:
        values: int32 [N]; may lie in memory maps.
        vocab_size: V, above all ids.
        at_most: see `spread_pieces`.
    """
    counts = np.zeros(vocab_size, np.int64)
    for piece in spread_pieces(values, at_most):
        counts += np.bincount(piece, minlength=vocab_size)
    return counts
