import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnlm.data.permutation import permutation, random_bits
from rnnlm.data.ragged import Joined, Ragged, concatenated_ranges, count_ids

ROWS = st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=8)


def listed(tokens):
    return [tokens[row].tolist() for row in range(len(tokens))]


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_rows_come_back(rows):
    tokens = Ragged.from_rows(rows)
    assert tokens.values.dtype == np.int32
    assert tokens.offsets.dtype == np.int64
    assert listed(tokens) == rows
    assert tokens.lengths.tolist() == [len(row) for row in rows]
    assert tokens.num_tokens == sum(map(len, rows))


@settings(max_examples=50, deadline=None)
@given(st.lists(ROWS, max_size=4))
def test_concatenate(parts):
    joined = Ragged.concatenate([Ragged.from_rows(rows) for rows in parts])
    assert listed(joined) == [row for rows in parts for row in rows]


@settings(max_examples=50, deadline=None)
@given(st.lists(ROWS, min_size=2, max_size=4), st.data())
def test_joined_parts_read_as_concatenated_ones(parts, data):
    tokens = [Ragged.from_rows(rows) for rows in parts]
    joined, copied = Ragged.join(tokens), Ragged.concatenate(tokens)
    assert isinstance(joined.values, Joined)
    assert listed(joined) == listed(copied)
    assert np.asarray(joined.values).tolist() == copied.values.tolist()
    size = len(copied.values)
    assert len(joined.values) == size
    start, stop = (data.draw(st.integers(0, size + 2)) for _ in range(2))
    assert joined.values[start:stop].tolist() == copied.values[start:stop].tolist()
    index = np.array(data.draw(st.lists(st.integers(-size, size - 1), max_size=9)) if size else [], np.int64)
    found = joined.values[index]
    assert found.dtype == np.int32
    assert found.tolist() == copied.values[index].tolist()
    first = data.draw(st.integers(0, len(copied)))
    last = data.draw(st.integers(first, len(copied)))
    assert listed(joined.slice(first, last)) == listed(copied.slice(first, last))


def test_joined_parts_are_not_copied():
    first, second = Ragged.from_rows([[1, 2], [3]]), Ragged.from_rows([[4, 5, 6]])
    joined = Ragged.join([first, second])
    assert np.shares_memory(joined[1], first.values)
    assert np.shares_memory(joined[2], second.values)
    with pytest.raises(ValueError, match="only as a copy"):
        np.asarray(joined.values, copy=False)


@settings(max_examples=50, deadline=None)
@given(ROWS, st.data())
def test_slice_and_gather(rows, data):
    tokens = Ragged.from_rows(rows)
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    part = tokens.slice(start, stop)
    assert listed(part) == rows[start:stop]
    assert listed(Ragged.concatenate([part, part])) == rows[start:stop] * 2
    some = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1))) if rows else [], np.int64)
    assert tokens.gather(some).tolist() == [token for row in some for token in rows[row]]


def test_single_part_is_not_copied():
    tokens = Ragged.from_rows([[1, 2]])
    assert Ragged.concatenate([tokens]) is tokens


def test_rows_from_the_end_and_beyond():
    tokens = Ragged.from_rows([[1], [2, 3]])
    assert tokens[-1].tolist() == [2, 3]
    with pytest.raises(IndexError, match="row 2 of 2"):
        tokens[2]


def test_concatenated_ranges():
    ranges = concatenated_ranges(np.array([5, 0, 2]), np.array([2, 0, 3]))
    assert ranges.tolist() == [5, 6, 2, 3, 4]


def test_ids_are_counted_in_pieces():
    values = np.arange(2_500_000, dtype=np.int32) % 7
    assert count_ids(Joined([values[:10], values[10:]]), 9).tolist() == np.bincount(values, minlength=9).tolist()
    assert count_ids(values[:0], 3).tolist() == [0, 0, 0]


def test_of_many_ids_pieces_from_all_over_are_counted():
    values = np.repeat(np.arange(6, dtype=np.int32), 1 << 20)
    assert count_ids(values, 6, at_most=3 << 20).tolist() == [1 << 20, 0] * 3
    assert count_ids(values, 6, at_most=len(values)).tolist() == [1 << 20] * 6


def test_permutations_stay_the_same_for_ever():
    assert permutation(10, 1, 2, 3).tolist() == [8, 1, 9, 3, 7, 5, 2, 0, 4, 6]
    assert random_bits(1, 0, 0, 1).tolist() == [8286993518594409552]
    assert sorted(permutation(1000, 5).tolist()) == list(range(1000))
