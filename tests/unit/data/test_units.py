from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rnnlm.data.config import DataConfig
from rnnlm.data.sources import check_sources
from rnnlm.data.units import Reject, RowCounts, Unit

POEM = b"\n first\nsecond\n\n\nthird\r\n \nlast"


def read(folder: Path, is_text: bool = True, **settings: Any) -> tuple[list[Unit], list[Reject], RowCounts]:
    data = DataConfig.parse(settings)
    counts = RowCounts()
    items = list(check_sources(data, is_text=is_text, base=folder).splits["train"].items(data, counts))
    counts.check()
    units = [item for item in items if isinstance(item, Unit)]
    return units, [item for item in items if isinstance(item, Reject)], counts


def test_blocks_between_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(POEM)
    units, rejects, counts = read(tmp_path, train="p.txt", unit="block")
    assert [(unit.id, unit.source, unit.num_rows) for unit in units] == [
        ("p.txt:2", " first\nsecond", 2),
        ("p.txt:6", "third", 1),
        ("p.txt:8", "last", 1),
    ]
    assert (counts.read, counts.separators, rejects) == (8, 4, [])


def test_lines(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(POEM)
    units, _, counts = read(tmp_path, train="p.txt", unit="line")
    assert [unit.source for unit in units] == ["", " first", "second", "", "", "third", " ", "last"]
    assert [unit.is_blank for unit in units] == [True, False, False, True, True, False, True, False]
    assert (units[5].id, counts.separators) == ("p.txt:6", 0)


def test_a_whole_file_stays_as_it_is_but_for_its_line_ends(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(POEM)
    (tmp_path / "q.txt").write_bytes(b"\xef\xbb\xbfends in a newline\n")
    units, _, _ = read(tmp_path, train=["p.txt", "q.txt"], unit="file")
    assert [unit.source for unit in units] == [POEM.decode().replace("\r", ""), "ends in a newline\n"]
    assert [unit.id for unit in units] == ["p.txt", "q.txt"]


def test_only_lf_and_crlf_end_a_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("a\u2028b\x0bc\x85d\re\x1cf\n".encode())
    units, _, counts = read(tmp_path, train="p.txt", unit="line")
    assert counts.read == 1
    assert units[0].source == "a\u2028b\x0bc\x85d\re\x1cf"


def test_a_bad_line_leaves_its_document(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"one\n\xff\ntwo\n\nthree\n")
    units, rejects, counts = read(tmp_path, train="p.txt", unit="block")
    assert [unit.source for unit in units] == ["one\ntwo", "three"]
    assert [(reject.row, reject.reason, reject.excerpt) for reject in rejects] == [(2, "bad_bytes", "\\xff")]
    assert (counts.read, counts.in_units, counts.rejected, counts.separators) == (5, 3, 1, 1)


def test_rows_of_a_table_are_documents_unless_joined(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b'text,name\n"a\nb",x\nc,y\n')
    columns = {"id": "name"}
    units, _, _ = read(tmp_path, train="t.csv", columns=columns)
    assert [(unit.id, unit.source, unit.row) for unit in units] == [("x", "a\nb", 2), ("y", "c", 4)]
    units, _, counts = read(tmp_path, train="t.csv", columns=columns, unit="file")
    assert [(unit.id, unit.source, unit.num_rows) for unit in units] == [("t.csv", "a\nb\nc", 2)]
    assert counts.read == 2


def test_group_column_gathers_rows_from_all_files(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_bytes(
        b'{"text": "a1", "doc": 7, "kind": "x"}\n{"text": "b1", "doc": "8", "kind": null}\n{"text": 3, "doc": 7}\n'
    )
    (tmp_path / "2.jsonl").write_bytes(b'{"text": "a2", "doc": 7, "kind": ["y"]}\n')
    units, rejects, _ = read(tmp_path, train="*.jsonl", columns={"group": "doc", "tags": "kind"})
    assert [(unit.id, unit.source, unit.tags) for unit in units] == [("7", "a1\na2", "x"), ("8", "b1", "")]
    assert [(reject.file, reject.row, reject.reason) for reject in rejects] == [("1.jsonl", 3, "wrong_type")]


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_pairs_of_every_table_format(tmp_path: Path, form: str) -> None:
    rows = [{"de": "eins", "en": "one", "n": "1", "k": "a,b"}, {"de": "zwei", "en": "two", "n": "2", "k": ""}]
    path = tmp_path / f"t.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif form == "jsonl":
        import json

        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        mark = {"csv": ",", "tsv": "\t"}[form]
        quoted = [[f'"{value}"' if form == "csv" else value for value in row.values()] for row in rows]
        path.write_text("".join(mark.join(fields) + "\r\n" for fields in [list(rows[0]), *quoted]))
    columns = {"source": "de", "target": "en", "id": "n", "tags": "k"}
    units, rejects, _ = read(tmp_path, is_text=False, train=path.name, columns=columns)
    found = [(unit.source, unit.target, unit.id, unit.tags) for unit in units]
    assert found == [("eins", "one", "1", "a,b"), ("zwei", "two", "2", "")]
    assert rejects == []


def test_nested_columns_by_their_path(tmp_path: Path) -> None:
    rows = [{"translation": {"de": "eins", "en": "one"}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text('{"translation": {"de": "eins", "en": "one"}}\n{"translation": {"de": "x"}}\n')
    columns = {"source": "translation.de", "target": "translation.en"}
    units, rejects, _ = read(tmp_path, is_text=False, train="t.*", columns=columns)
    assert [(unit.source, unit.target) for unit in units] == [("eins", "one")] * 2
    assert [reject.reason for reject in rejects] == ["missing_key"]


def test_aligned_files_and_the_line_ends_of_values(tmp_path: Path) -> None:
    (tmp_path / "a.de").write_bytes(b"eins\r\nzwei\r\n")
    (tmp_path / "a.en").write_bytes(b"one\ntwo")
    units, _, counts = read(tmp_path, is_text=False, train={"source": "a.de", "target": "a.en"})
    assert [(unit.id, unit.source, unit.target) for unit in units] == [
        ("a.de:1", "eins", "one"),
        ("a.de:2", "zwei", "two"),
    ]
    assert counts.files == {"a.de": 2}
    (tmp_path / "t.jsonl").write_bytes(b'{"source": "a\\r\\nb", "target": "c\\r\\nd"}\n')
    units, _, _ = read(tmp_path, is_text=False, train="t.jsonl")
    assert (units[0].source, units[0].target, units[0].raw_source) == ("a\nb", "c\nd", "a\r\nb")
