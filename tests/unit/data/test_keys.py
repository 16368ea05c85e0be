from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnlm.data.keys import KNOWN, Flags, KeyTable
from rnnlm.data.splits import source_key


def numbers_of(parts: list[np.ndarray]) -> list[int]:
    return sorted(int(number) for part in parts for number in part)


@pytest.mark.parametrize("held_records", [5, 300, 1 << 20])
def test_repeats_are_all_but_the_first_of_each_key_whatever_fits_in_memory(tmp_path: Path, held_records: int) -> None:
    texts = [str(number * 7919 % 900) for number in range(2_000)]
    table = KeyTable(tmp_path / "keys", held_records=held_records)
    for start in range(0, 2_000, 80):
        some = texts[start : start + 80]
        table.add(b"".join(map(source_key, some)), np.arange(start, start + len(some)))
    seen: Counter[str] = Counter()
    expected = []
    for number, text in enumerate(texts):
        if seen[text]:
            expected.append(number)
        seen[text] += 1
    assert numbers_of(list(table.repeats())) == expected
    assert (tmp_path / "keys").exists() == (held_records < 2_000)
    assert numbers_of(list(table.repeats())) == expected


@pytest.mark.parametrize("held_records", [4, 1 << 20])
def test_known_keys_are_those_that_stand_on_both_sides(tmp_path: Path, held_records: int) -> None:
    table = KeyTable(tmp_path / "keys", held_records=held_records)
    table.add(b"".join(source_key(str(n)) for n in (1, 2, 3, 3, 4)), np.full(5, KNOWN))
    table.add(b"".join(source_key(str(n)) for n in (9, 3, 1, 8, 3, 9)), np.arange(6))
    assert numbers_of(list(table.known())) == [1, 2, 4]


def test_a_key_that_is_everywhere_ends(tmp_path: Path) -> None:
    table = KeyTable(tmp_path / "keys", held_records=3)
    table.add(source_key("same") * 50, np.arange(50))
    assert numbers_of(list(table.repeats())) == list(range(1, 50))


def test_an_empty_table_has_nothing(tmp_path: Path) -> None:
    assert list(KeyTable(tmp_path / "keys").repeats()) == []


@given(st.sets(st.integers(0, 99)), st.integers(0, 99), st.integers(0, 99))
def test_flags(chosen: set[int], start: int, count: int) -> None:
    flags = Flags(100)
    flags.set(np.array(sorted(chosen), np.int64))
    flags.set(np.array(sorted(chosen), np.int64))
    count = min(count, 100 - start)
    assert flags.total == len(chosen)
    assert flags.part(start, count).tolist() == [number in chosen for number in range(start, start + count)]
