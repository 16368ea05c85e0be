"""Rows of unequal length in two flat arrays.

Shapes: N all values, R rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """Token ids of many rows: row r is `values[offsets[r]:offsets[r + 1]]`."""

    values: np.ndarray
    """int32 [N]; may lie in a read-only memory map."""
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
        lengths = np.concatenate([part.lengths for part in parts])
        values = np.concatenate([part.values[part.offsets[0] : part.offsets[-1]] for part in parts])
        return cls(values, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))

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
