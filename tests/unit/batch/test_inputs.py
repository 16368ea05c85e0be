import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rnnlm.batch import inputs
from rnnlm.batch.config import BatchConfig
from rnnlm.batch.inputs import InputRow
from rnnlm.errors import DataError, UsageError


def read(path: Path, config: BatchConfig | None = None) -> list[InputRow]:
    config = config or BatchConfig()
    taken = inputs.snapshot([str(path)], path.parent, config)
    (file,) = taken.files
    found = list(inputs.read_rows(file, config))
    assert taken.num_rows == len(found)
    return found


def test_every_line_of_a_text_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes(b"one\n\ntwo \r\n\xff\xfe\nnul\0\nlast")
    assert read(path) == [
        InputRow("in.txt:1", "one"),
        InputRow("in.txt:2", ""),
        InputRow("in.txt:3", "two "),
        InputRow("in.txt:4", "\\xff\\xfe", "not valid UTF-8"),
        InputRow("in.txt:5", "nul\\x00", "contains a NUL character"),
        InputRow("in.txt:6", "last"),
    ]


def test_an_over_long_line_is_one_rejected_row(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("x" * 500 + "\nshort\n")
    found = read(path, BatchConfig(max_row_bytes=100))
    assert [row.problem for row in found] == ["more bytes than generate.max_row_bytes", None]


@pytest.mark.parametrize("column", ["source", "text"])
def test_tables(tmp_path: Path, column: str) -> None:
    rows = [{"id": "a", column: "one"}, {"id": "b", column: "two"}]
    jsonl, csv, parquet = tmp_path / "in.jsonl.gz", tmp_path / "in.csv", tmp_path / "in.parquet"
    jsonl.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    csv.write_text(f"id,{column}\na,one\nb,two\n")
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    for path in (jsonl, csv, parquet):
        assert [row.text for row in read(path)] == ["one", "two"]
        assert [row.row_id for row in read(path, BatchConfig(id_column="id"))] == ["a", "b"]


def test_mixed_types_are_rejected_row_by_row(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"source": "a"}\n{"source": 5}\n{"other": "b"}\nnot json\n')
    assert [row.problem for row in read(path)] == [
        None, "the input is not a string", "the input column is missing", "not a JSON object"
    ]  # fmt: skip


def test_shards_do_not_span_files_and_can_be_picked(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1\n2\n3\n")
    (tmp_path / "b.txt").write_text("4\n")
    config = BatchConfig(shard_rows=2)
    taken = inputs.snapshot([str(tmp_path / "*.txt")], tmp_path, config)
    cut = [(shard.name, [row.text for row in shard.rows]) for shard in inputs.shards(taken, config)]
    assert cut == [("part-00000", ["1", "2"]), ("part-00001", ["3"]), ("part-00002", ["4"])]
    assert [shard.name for shard in inputs.shards(taken, config, {"part-00001"})] == ["part-00001"]
    assert [entry["rows"] for entry in taken.plain()] == [3, 1]


def test_what_cannot_be_used_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError) as caught:
        inputs.snapshot(
            [str(tmp_path / "absent.txt"), str(tmp_path / "*.md"), str(tmp_path / "t.csv")], tmp_path, BatchConfig()
        )
    message = str(caught.value)
    assert "3 problems" in message
    assert "no column 'source' (it has: a, b)" in message
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(DataError, match="empty"):
        inputs.snapshot([str(tmp_path / "empty.txt")], tmp_path, BatchConfig())
