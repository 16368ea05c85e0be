"""Single bad rows: each is put aside with file, row, reason and its beginning, and the rest is read as if it were not there."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rnnlm.data.config import DataConfig
from rnnlm.data.corpus import REJECTS, read_rows
from rnnlm.data.ingest import IngestReport
from rnnlm.data.rows import decode
from rnnlm.data.sources import check_sources
from rnnlm.data.units import Reject, RowCounts, Unit
from rnnlm.errors import DataError
from rnnlm.storage import Store

Run = Callable[..., IngestReport]


def read(folder: Path, name: str, content: bytes, is_text: bool = True, **settings: Any) -> tuple[list[str], list[Any]]:
    """Texts (or sources), and row, reason of rejects."""
    (folder / name).write_bytes(content)
    data = DataConfig.parse({"train": name, **settings})
    counts = RowCounts()
    items = list(check_sources(data, is_text=is_text, base=folder).splits["train"].items(data, counts))
    counts.check()
    texts = [item.source for item in items if isinstance(item, Unit)]
    return texts, [(item.row, item.reason) for item in items if isinstance(item, Reject)]


@pytest.mark.parametrize("zipped", [False, True])
def test_bad_lines_of_text(tmp_path: Path, zipped: bool) -> None:
    content = b"good\n" + b"x" * 50 + b"\nnul \0 here\nlatin \xe4\n" + b"y" * 5_000 + b"\nfine\n" + b"z" * 23
    name = "a.txt.gz" if zipped else "a.txt"
    texts, rejects = read(tmp_path, name, gzip.compress(content) if zipped else content, unit="line", max_row_bytes=20)
    assert texts == ["good", "fine"]
    assert rejects == [(2, "over_long"), (3, "nul"), (4, "bad_bytes"), (5, "over_long"), (7, "over_long")]


@pytest.mark.parametrize("extra", [0, 1, 2, 3])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_the_limit_of_a_line_is_exact(tmp_path: Path, extra: int, end: bytes) -> None:
    texts, rejects = read(tmp_path, "a.txt", b"ab\n" + b"x" * (20 + extra) + end, unit="line", max_row_bytes=20)
    assert (texts, rejects) == ((["ab", "x" * 20], []) if extra == 0 else (["ab"], [(2, "over_long")]))


def test_a_file_as_one_document_is_no_row(tmp_path: Path) -> None:
    texts, rejects = read(tmp_path, "a.txt", b"x" * 5_000, unit="file", max_row_bytes=20)
    assert (texts, rejects) == (["x" * 5_000], [])


def test_bad_rows_of_json_lines(tmp_path: Path) -> None:
    lines = [
        '{"text": "good"}',
        '{"text": 5}',
        '{"text": null}',
        '{"text": ["a"]}',
        '{"other": "x"}',
        '["no object"]',
        '{"text": "unfinished',
        '{"text": "nul \\u0000"}',
        '{"text": "half \\ud83d"}',
        json.dumps({"text": "ü" * 20}),
        json.dumps({"text": "ok", "comment": "c" * 100}),
        "",
        '{"text": "end"}',
    ]
    texts, rejects = read(tmp_path, "a.jsonl", "\n".join(lines).encode(), max_row_bytes=30)
    assert texts == ["good", "ok", "end"]
    assert rejects == [
        (2, "wrong_type"),
        (3, "wrong_type"),
        (4, "wrong_type"),
        (5, "missing_key"),
        (6, "wrong_type"),
        (7, "bad_json"),
        (8, "nul"),
        (9, "bad_bytes"),
        (10, "over_long"),
    ]


def test_columns_of_a_malformed_csv_file_do_not_shift(tmp_path: Path) -> None:
    content = b'source,target\na,b\nc,d,e\nf\n"g, h",i\n"j",k\n\n"l"x,m\nn,"o\np"\n\xff,q\nr,s\n'
    texts, rejects = read(tmp_path, "a.csv", content, is_text=False)
    assert texts == ["a", "g, h", "j", "n", "r"]
    assert rejects == [
        (3, "wrong_number_of_fields"),
        (4, "wrong_number_of_fields"),
        (8, "bad_csv"),
        (11, "bad_bytes"),
    ]


def test_a_quote_that_never_closes_spoils_only_its_own_line(tmp_path: Path) -> None:
    content = b'source,target\na,b\n"c,d\ne,f\n"g ""x""",h\ni,j\n'
    texts, rejects = read(tmp_path, "a.csv", content, is_text=False)
    assert (texts, rejects) == (["a", "e", 'g "x"', "i"], [(3, "bad_csv")])


def test_a_record_over_lines_with_a_bad_line_inside_is_put_aside_whole(tmp_path: Path) -> None:
    texts, rejects = read(tmp_path, "a.csv", b'source,target\n"c\n\xff","d"\n"e\nf","g",x\nh,i\n', is_text=False)
    assert (texts, rejects) == (["h"], [(2, "bad_bytes"), (4, "wrong_number_of_fields")])


def test_a_quote_inside_a_field_is_a_character(tmp_path: Path) -> None:
    lines = [f"s{number},t{number}" for number in range(1_000)]
    lines[8] = '3.5" disk,x'
    lines[898] = 'a,5"'
    lines[900] = ' "a,"two, and'
    lines[901] = 'more"'
    content = "\n".join(["source,target", *lines]).encode()
    texts, rejects = read(tmp_path, "a.csv", content, is_text=False)
    assert (len(texts), rejects) == (999, [])
    assert (texts[8], texts[898:902]) == ('3.5" disk', ["a", "s899", ' "a', "s902"])


def test_a_record_that_is_malformed_in_a_later_line_spoils_only_its_first(tmp_path: Path) -> None:
    lines = [f"s{number},t{number}" for number in range(1_000)]
    lines[8], lines[898] = '"open,x', 'a,"b" c'
    content = "\n".join(["source,target", *lines, '"e\n","f\n"']).encode()
    texts, rejects = read(tmp_path, "a.csv", content, is_text=False)
    assert (len(texts), texts[-1]) == (999, "e\n")
    assert rejects == [(10, "bad_csv"), (900, "bad_csv")]


def test_a_record_has_a_limit(tmp_path: Path) -> None:
    fine, long = "x" * 70_000, "x\n" * 40_000
    content = f'source,target\n"{fine}\n",a\n"{long}",b\nlast,c\n'.encode()
    texts, rejects = read(tmp_path, "a.csv", content, is_text=False, max_row_bytes=1_000)
    assert texts == ["last"]
    assert (rejects[:2], len(rejects), rejects[-1]) == ([(2, "over_long"), (4, "bad_csv")], 40_002, (40_004, "bad_csv"))


def test_quotes_that_never_close_take_time_in_proportion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr("rnnlm.data.rows.decode", lambda line: decoded.append(line.number) or decode(line))
    texts, rejects = read(tmp_path, "a.csv", b"source,target\n" + b'x","y\n' * 2_000 + b"last,z\n", is_text=False)
    assert (texts, len(rejects)) == (["last"], 2_000)
    assert len(decoded) < 3 * 2_000


def test_bad_rows_of_tab_separated_files(tmp_path: Path) -> None:
    content = b'source\ttarget\na\tb\n"c\td\ne\n\nf\tg\th\ni\t\xe4\nj\tk\r\n'
    texts, rejects = read(tmp_path, "a.tsv", content, is_text=False)
    assert texts == ["a", '"c', "j"]
    assert rejects == [(4, "wrong_number_of_fields"), (6, "wrong_number_of_fields"), (7, "bad_bytes")]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_an_empty_line_of_a_file_with_one_column_is_an_empty_row(tmp_path: Path, name: str) -> None:
    texts, rejects = read(tmp_path, name, b"text\na\n\nb\n")
    assert (texts, rejects) == (["a", "", "b"], [])


def test_bad_bytes_in_one_cell_of_a_parquet_file(tmp_path: Path) -> None:
    texts = pa.array([b"good", b"caf\xe9", None, b"fine"] + [b"more"] * 2_000, pa.binary()).cast(
        pa.string(), safe=False
    )
    pairs = pa.StructArray.from_arrays([texts, texts.dictionary_encode()], ["de", "en"])
    pq.write_table(pa.table({"text": texts, "pair": pairs}), tmp_path / "made.parquet")
    content = (tmp_path / "made.parquet").read_bytes()
    for columns in ({"text": "text"}, {"text": "pair.de"}, {"text": "pair.en"}):
        found, rejects = read(tmp_path, "a.parquet", content, columns=columns)
        assert found == ["good", "fine"] + ["more"] * 2_000
        assert rejects == [(2, "bad_bytes"), (3, "wrong_type")]


def test_bad_lines_of_aligned_files_spoil_the_pair(tmp_path: Path, run_ingest: Run, corpus: Store) -> None:
    (tmp_path / "a.de").write_bytes(b"eins\nzwei \xff\ndrei\nvier\n\n" + b"x\n" * 95)
    (tmp_path / "a.en").write_bytes(b"one\ntwo\nthree \0\nfour\nfive\n" + b"".join(b"%d\n" % n for n in range(95)))
    report = run_ingest(is_text=False, train={"source": "a.de", "target": "a.en"})
    reading = report.read["train"]
    assert (reading.rows, reading.units, reading.kept) == (100, 98, 97)
    assert reading.quarantined == {"bad_bytes": 1, "nul": 1, "blank": 1}
    assert [row["target"] for row in read_rows(corpus, "train")][:3] == ["one", "four", "0"]
    assert rejects_of(corpus) == [
        ("train", "a.de", 2, "bad_bytes", "zwei \\xff"),
        ("train", "a.en", 3, "nul", "three \\x00"),
        ("train", "a.de", 5, "blank", "five"),
    ]


def test_rejects_of_aligned_files_say_which_of_two_with_one_name(
    tmp_path: Path, run_ingest: Run, corpus: Store
) -> None:
    for side in ("de", "en"):
        (tmp_path / side).mkdir()
    (tmp_path / "de/train.txt").write_bytes(b"eins\nzwei \xff\ndrei\n")
    (tmp_path / "en/train.txt").write_bytes(b"one\ntwo\nthree \xff\n")
    run_ingest(is_text=False, train={"source": "de/train.txt", "target": "en/train.txt"}, max_reject_share=1)
    assert [reject[1:3] for reject in rejects_of(corpus)] == [("de/train.txt", 2), ("en/train.txt", 3)]
    assert [row["id"] for row in read_rows(corpus, "train")] == ["de/train.txt:1"]


def rejects_of(corpus: Store) -> list[tuple[Any, ...]]:
    rows = pq.read_table(corpus.path(REJECTS)).to_pylist()
    return [tuple(row[name] for name in ("split", "file", "row", "reason", "excerpt")) for row in rows]


def test_too_many_bad_rows_fail_and_leave_the_rejects_to_read(tmp_path: Path, run_ingest: Run, corpus: Store) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 9 + '{"text": 1}\n')
    with pytest.raises(DataError, match=r"1 of 10 rows were put aside \(1 wrong_type\).*max_reject_share = 0\.05"):
        run_ingest(train="a.jsonl", duplicates="keep")
    assert [reject[2:4] for reject in rejects_of(corpus)] == [(10, "wrong_type")]
    assert not corpus.exists("corpus.json")
    assert run_ingest(train="a.jsonl", max_reject_share=0.1).reject_share == 0.1


def test_nothing_left(tmp_path: Path, run_ingest: Run) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": " "}\n{"text": ""}\n')
    with pytest.raises(DataError, match=r"data\.train: nothing is left of 2 rows \(2 blank"):
        run_ingest(train="a.jsonl", max_reject_share=1)


def test_blank_lines_are_no_fault_where_lines_are_documents(tmp_path: Path, run_ingest: Run) -> None:
    (tmp_path / "a.txt").write_text("a\n\nb\n\nc\n\n")
    report = run_ingest(train="a.txt", unit="line")
    assert report.read["train"].quarantined == {"blank": 3}
    assert (report.written["train"].units, report.reject_share) == (3, 0)


def test_gzip_damaged_behind_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_ingest: Run) -> None:
    monkeypatch.setattr("rnnlm.data.files.SAMPLE_BYTES", 100)
    text = "".join(f"{number * 7919 % 10007}\n" for number in range(20_000)).encode()
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text)[:-2_000])
    with pytest.raises(DataError, match=r"a\.txt\.gz is a damaged gzip file"):
        run_ingest(train="a.txt.gz", unit="line")
