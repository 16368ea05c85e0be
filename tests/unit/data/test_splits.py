from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnlm.data.corpus import read_rows
from rnnlm.data.ingest import IngestReport
from rnnlm.data.splits import Division, Keyed, cut_lines, keyed, positions, source_key
from rnnlm.data.units import Unit
from rnnlm.storage import Store

Run = Callable[..., IngestReport]


def pair(source: str, target: str = "t") -> Keyed:
    return keyed(Unit(source, source, target, "", source, "f", 1, 1), str.lower)


def divide(units: list[Keyed], shares: dict[str, float], rest: str = "train", seed: int = 0) -> dict[str, str]:
    keys = b"".join(unit.key for unit in units)
    division = Division.plan([keys[:16], keys[16:]], shares, rest=rest, seed=seed, purpose="splits")
    masks = dict(division.masks(keys))
    assert (sum(masks.values()) == 1).all()
    return {
        unit.unit.id: split for split, mask in masks.items() for unit, taken in zip(units, mask, strict=True) if taken
    }


def test_positions_are_uniform_and_change_with_seed_and_purpose() -> None:
    keys = b"".join(source_key(str(number)) for number in range(4_000))
    places = positions(keys, 0, "splits")
    counts = Counter((places * 10).astype(int).tolist())
    assert min(counts.values()) > 320
    assert max(counts.values()) < 480
    assert positions(keys[:16], 0, "splits") == places[:1]
    assert (
        len({float(positions(keys[:16], seed, purpose)[0]) for seed in (0, 1) for purpose in ("splits", "gate")}) == 4
    )


def test_shares_and_the_same_place_whatever_the_order() -> None:
    units = [pair(f"source {number}") for number in range(3_000)]
    shares = {"valid": 0.1, "test": 0.05}
    forward = divide(units, shares, seed=7)
    assert forward == divide(units[::-1], shares, seed=7)
    counts = Counter(forward.values())
    assert 240 < counts["valid"] < 360
    assert 110 < counts["test"] < 190
    assert forward != divide(units, shares, seed=8)


def test_rows_with_one_normalised_source_stay_together() -> None:
    units = [pair(f"{word} {number % 50}", str(number)) for number in range(400) for word in ("Word", "WORD")]
    for index, unit in enumerate(units):
        units[index] = Keyed(unit.unit._replace(id=str(index)), unit.key, unit.exact, unit.whole)
    splits = divide(units, {"valid": 0.3})
    by_source: dict[str, set[str]] = {}
    for index, unit in enumerate(units):
        by_source.setdefault(unit.unit.source.lower(), set()).add(splits[str(index)])
    assert all(len(found) == 1 for found in by_source.values())
    assert len(by_source) == 50


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_small_corpus_leaves_no_split_empty(count: int) -> None:
    splits = divide([pair(str(n)) for n in range(count)], {"valid": 0.02, "test": 0.02})
    assert len(set(splits.values())) == min(count, 3)
    assert "train" in splits.values()


def test_few_sources_meet_the_shares_by_rank() -> None:
    for count in (4, 10, 100):
        splits = divide([pair(str(n)) for n in range(count)], {"gate": 0.5}, rest="valid", seed=3)
        assert Counter(splits.values()) == {"gate": count // 2, "valid": count // 2}


def test_a_tiny_share_of_many_sources_still_gets_one() -> None:
    splits = divide([pair(str(n)) for n in range(500)], {"test": 1e-9})
    assert Counter(splits.values()) == {"train": 499, "test": 1}


def test_pairs_with_a_single_source_all_stay() -> None:
    units = [keyed(Unit(str(n), "same", str(n), "", "same", "f", n, 1), str.lower) for n in range(5)]
    assert divide(units, {"valid": 0.0}) == divide(units, {"valid": 0.02}) == dict.fromkeys("01234", "train")


@given(
    lines=st.lists(st.text("ab ", max_size=12), min_size=1, max_size=30),
    shares=st.sampled_from([[0.5, 0.5], [0.9, 0.1], [0.8, 0.1, 0.1]]),
    end=st.sampled_from(["", "\n"]),
)
def test_parts_of_a_cut_document_are_the_document(lines: list[str], shares: list[float], end: str) -> None:
    text = "\n".join(lines) + end
    parts = cut_lines(text, shares)
    assert "".join(parts) == text
    assert len(parts) == len(shares)
    assert all(part.endswith("\n") for part, rest in pairwise(parts) if part and rest)


def test_the_cut_is_at_the_nearest_line_end() -> None:
    assert cut_lines("aaaa\nbb\ncc\ndddd\n", [0.5, 0.5]) == ["aaaa\nbb\n", "cc\ndddd\n"]
    assert cut_lines("aaaa\nbbbbbbbb\n", [0.9, 0.1]) == ["aaaa\n", "bbbbbbbb\n"]
    assert cut_lines("one line", [0.5, 0.5]) == ["one line", ""]


def test_one_document_is_cut_into_all_splits(tmp_path: Path, run_ingest: Run, corpus: Store) -> None:
    text = "".join(f"line {number}\n" for number in range(200))
    (tmp_path / "a.txt").write_text(text)
    report = run_ingest(train="a.txt", unit="file", valid_share=0.1, test_share=0.1, gate_share=0.5)
    parts = {split: next(read_rows(corpus, split)) for split in ("train", "valid", "gate", "test")}
    assert "".join(parts[split]["text"] for split in ("train", "valid", "gate", "test")) == text
    assert parts["gate"]["id"] == "a.txt#valid#gate"
    assert abs(len(parts["valid"]["text"]) - 0.05 * len(text)) < 20
    assert report.read["train"].went_to == {"train": 1, "valid": 1, "gate": 1, "test": 1}
    assert sum(part["num_bytes"] for part in parts.values()) == len(text)


def test_a_document_of_one_line_is_not_cut(tmp_path: Path, run_ingest: Run) -> None:
    (tmp_path / "a.txt").write_text("only this\n \n\n")
    report = run_ingest(train="a.txt", unit="file", valid_share=0.1)
    assert report.read["train"].went_to == {"train": 1}


def test_train_gives_what_is_not_given_and_the_gate_is_cut_from_valid(
    tmp_path: Path, run_ingest: Run, corpus: Store
) -> None:
    lines = [f"{number}" for number in range(2_000)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    (tmp_path / "t.txt").write_text("5\n5\nnew\n\n")
    report = run_ingest(train="a.txt", test="t.txt", unit="line", valid_share=0.2, test_share=0.3, gate_share=0.5)
    written = report.written
    assert 330 < written["valid"].units + written["gate"].units < 470
    assert abs(written["valid"].units - written["gate"].units) < 80
    assert [row["text"] for row in read_rows(corpus, "test")] == ["5", "5", "new", ""]
    together = [row["text"] for split in ("train", "valid", "gate") for row in read_rows(corpus, split)]
    assert sorted(together) == sorted(lines)
    assert sum(report.read["train"].went_to.values()) == 2_000


def test_duplicates_are_dropped_from_train_only(tmp_path: Path, run_ingest: Run, corpus: Store) -> None:
    (tmp_path / "a.tsv").write_text("source\ttarget\nA  b\tx\na b\tx\na b\ty\nA  b\tx\n")
    (tmp_path / "v.tsv").write_text("source\ttarget\na b\tx\na b\tx\n \t\nz\tx\n")
    normalize = {"whitespace": "collapse", "lowercase": True}
    report = run_ingest(is_text=False, train="a.tsv", valid="v.tsv", normalize=normalize)
    train, valid = report.read["train"], report.read["valid"]
    assert (train.duplicates, train.duplicates_dropped, train.kept) == (2, 2, 2)
    assert (valid.duplicates, valid.duplicates_dropped, valid.kept, valid.blank) == (1, 0, 4, 1)
    assert [row["source"] for row in read_rows(corpus, "train")] == ["A  b", "a b"]
    report = run_ingest(is_text=False, train="a.tsv", duplicates="keep", normalize=normalize)
    assert (report.read["train"].duplicates, report.read["train"].kept) == (2, 4)


def test_overlap_with_train_is_flagged_as_in_the_files_and_counted_after_normalization(
    tmp_path: Path, run_ingest: Run, corpus: Store
) -> None:
    (tmp_path / "a.jsonl").write_text('{"source": "one\\r\\ntwo", "target": "x"}\n{"source": "b", "target": "x"}\n')
    (tmp_path / "t.jsonl").write_text(
        '{"source": "one\\ntwo", "target": "x"}\n{"source": "b", "target": "y"}\n{"source": "c", "target": "x"}\n'
    )
    report = run_ingest(is_text=False, train="a.jsonl", test="t.jsonl")
    assert (report.read["test"].in_train, report.read["test"].in_train_normalized) == (1, 2)
    assert [row["in_train"] for row in read_rows(corpus, "test")] == [False, True, False]
    assert report.written["test"].in_train == 1
