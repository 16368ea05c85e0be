import gzip
import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rnnlm.data.config import DataConfig
from rnnlm.data.files import InputFile, Problems, count_lines, expand, labels, look_at
from rnnlm.data.sources import check_sources
from rnnlm.errors import DataError, UsageError


def look(path: Path, **options: bool) -> InputFile:
    problems = Problems()
    file = look_at(path, path.name, "data.train", problems, **options)
    problems.raise_any()
    assert file is not None
    return file


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_globs_are_sorted_and_files_named_twice_are_taken_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "deep/c.txt"):
        write(tmp_path / name, b"x\n")
    problems = Problems()
    found = expand(["b.txt", "*.txt", "**/c.txt"], tmp_path, "data.train", problems)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["b.txt", "a.txt", "deep/c.txt"]
    assert not problems.usage


def test_a_name_with_brackets_is_a_file_where_it_exists(tmp_path: Path) -> None:
    path = write(tmp_path / "a[1].txt", b"x\n")
    assert expand("a[1].txt", tmp_path, "data.train", Problems()) == [path]


def test_brackets_of_the_folder_are_no_glob(tmp_path: Path) -> None:
    base = tmp_path / "run[1]*"
    path = write(base / "a.txt", b"x\n")
    write(tmp_path / "run1" / "b.txt", b"x\n")
    assert expand(["*.txt", "../run[[]*/a.txt"], base, "data.train", Problems()) == [path, base / "../run[1]*/a.txt"]
    assert expand(f"{tmp_path}/run[1]/*.txt", base, "data.train", Problems()) == [tmp_path / "run1" / "b.txt"]


def test_all_missing_files_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    data = DataConfig.parse({"train": ["gone.txt", "*.nothing", "folder"], "test": "lost.txt"})
    with pytest.raises(UsageError) as error:
        check_sources(data, is_text=True, base=tmp_path)
    message = str(error.value)
    assert "4 problems" in message
    assert "gone.txt: no such file" in message
    assert "*.nothing matches no file" in message
    assert "folder is a folder" in message
    assert "data.test" in message
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"one\n", "text"),
        ("a", b"one\n", "text"),
        ("a.csv", b"text,id\nx,1\n", "csv"),
        ("a.CSV", b"text,id\nx,1\n", "csv"),
        ("a.tsv", b"text\tid\nx\t1\n", "tsv"),
        ("a.jsonl", b'{"text": "x", "id": "1"}\n', "jsonl"),
        ("a.de", b"eins\n", "text"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_format_by_name_plain_and_gzipped(
    tmp_path: Path, name: str, content: bytes, expected: str, zipped: bool
) -> None:
    stored = gzip.compress(content) if zipped else content
    file = look(write(tmp_path / (name + ".gz" if zipped else name), stored))
    assert (file.format, file.gzipped) == (expected, zipped)
    assert file.columns == (() if expected == "text" else ("text", "id"))
    assert file.digest == hashlib.sha256(stored).hexdigest()
    assert file.text_bytes >= len(content)
    assert count_lines(file) == content.count(b"\n")


def test_gzip_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    assert look(write(tmp_path / "a.txt", gzip.compress(b"one\ntwo"))).gzipped


@pytest.mark.parametrize("zipped", [False, True])
def test_parquet(tmp_path: Path, zipped: bool) -> None:
    table = pa.table({"text": ["a"], "pair": [{"de": "x", "en": "y"}]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    if zipped:
        path = write(tmp_path / "a.parquet.gz", gzip.compress(path.read_bytes()))
    file = look(path)
    assert file.format == "parquet"
    assert file.columns == ("text", "pair", "pair.de", "pair.en")


@pytest.mark.parametrize("zipped", [False, True])
def test_the_size_of_parquet_is_that_before_compression(tmp_path: Path, zipped: bool) -> None:
    texts = [f"{number} " + "word " * 100 for number in range(2_000)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": texts}), path, compression="zstd", row_group_size=500, use_dictionary=False)
    assert path.stat().st_size < 200_000
    if zipped:
        path = write(tmp_path / "a.parquet.gz", gzip.compress(path.read_bytes()))
    size = sum(map(len, texts))
    assert size <= look(path).text_bytes < 1.1 * size


def test_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    assert look(write(tmp_path / "a.csv", b"\xef\xbb\xbftext,id\nx,1\n")).columns == ("text", "id")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"\xef\xbb\xbf", "nothing but blanks"),
        ("a.txt", b" \n\n\t\n", "nothing but blanks"),
        ("a.txt", bytes(range(256)) * 20, "not UTF-8 text"),
        ("a.txt", "größer\nkälter\nnaß\n".encode("latin-1"), "not UTF-8 text"),
        ("a.txt", "text\n".encode("utf-16"), "UTF-16"),
        ("a.txt", b"PK\x03\x04rest", "zip archive"),
        ("a.txt.zst", b"\x28\xb5\x2f\xfdrest", "zstd"),
        ("a.txt.gz", gzip.compress(b"one\n" * 9_999, mtime=0)[:-20], "damaged gzip"),
        ("a.jsonl", b"not json\n", "no JSON object"),
        ("a.parquet", b"PAR1 is not all", "not a Parquet file"),
        ("a.parquet", b"", "is empty"),
        ("a.csv", b'"text,id\n', "no header"),
        ("a.json", b'{\n"text":\n"pretty"}\n', "no JSON object"),
    ],
)
def test_not_text_as_a_whole(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        look(write(tmp_path / name, content))
    assert name in str(error.value)
    assert error.value.exit_code == 3


def test_parquet_whose_column_has_no_name_in_utf_8(tmp_path: Path) -> None:
    pq.write_table(pa.table({"column": ["a"]}), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content.replace(b"column", b"colum\x80"))
    with pytest.raises(DataError, match="not a Parquet file"):
        look(tmp_path / "a.parquet")


def test_parquet_without_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no rows"):
        look(tmp_path / "a.parquet")


@pytest.mark.parametrize("content", [b'[{"text": "x"}]', b'\xef\xbb\xbf\n [\n{"text": "x"}\n]'])
def test_a_json_array_is_refused_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match="one object a line"):
        look(write(tmp_path / "a.json", content))


@pytest.mark.parametrize("zipped", [False, True])
def test_the_first_line_of_json_lines_may_be_longer_than_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    monkeypatch.setattr("rnnlm.data.files.SAMPLE_BYTES", 100)
    content = b'{"text": "%s"}\n{"text": "b", "id": 1}\n' % (b"a" * 500)
    name = "a.jsonl.gz" if zipped else "a.jsonl"
    path = write(tmp_path / name, gzip.compress(content) if zipped else content)
    assert look(path).columns == ("text", "id")
    monkeypatch.setattr("rnnlm.data.files._LINE_BYTES", 300)
    assert look(path).columns == ("text", "id")
    write(path, b"x" * 500)
    with pytest.raises(DataError, match="no JSON object"):
        look(path)


def test_a_few_bad_lines_are_no_reason_to_refuse_a_file(tmp_path: Path) -> None:
    assert look(write(tmp_path / "a.txt", b"good\nalso\nbad \xff\n")).format == "text"


def test_a_character_cut_by_the_end_of_the_sample_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnlm.data.files.SAMPLE_BYTES", 6)
    assert look(write(tmp_path / "a.txt", "aaaaaß und weiter".encode())).format == "text"


def test_problems_of_both_kinds_are_a_usage_error_with_all_lines(tmp_path: Path) -> None:
    write(tmp_path / "empty.txt", b"")
    with pytest.raises(UsageError) as error:
        check_sources(DataConfig.parse({"train": ["empty.txt", "gone.txt"]}), is_text=True, base=tmp_path)
    assert "empty.txt: is empty" in str(error.value)
    assert "gone.txt" in str(error.value)


def test_absent_column_names_those_that_exist(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", b'{"dialogue": "x", "summary": "y"}\n')
    with pytest.raises(UsageError, match=r"no column 'source'; its columns: dialogue, summary .*data\.columns\.source"):
        check_sources(DataConfig.parse({"train": "a.jsonl"}), is_text=False, base=tmp_path)


def test_a_column_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", b"text,text\nx,y\n")
    with pytest.raises(UsageError, match="more than one column 'text'"):
        check_sources(DataConfig.parse({"train": "a.csv"}), is_text=True, base=tmp_path)


def test_plain_text_has_neither_pairs_nor_columns(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"x\n")
    with pytest.raises(UsageError, match="plain text, which has no pairs"):
        check_sources(DataConfig.parse({"train": "a.txt"}), is_text=False, base=tmp_path)
    with pytest.raises(UsageError, match=r"data\.columns\.group does not go with it"):
        check_sources(DataConfig.parse({"train": "a.txt", "columns": {"group": "g"}}), is_text=True, base=tmp_path)


def test_aligned_files_of_unequal_length_name_both_counts(tmp_path: Path) -> None:
    write(tmp_path / "a.de", b"1\n2\n3")
    write(tmp_path / "a.en", gzip.compress(b"1\n2\n"))
    data = DataConfig.parse({"train": {"source": "a.de", "target": "a.en"}})
    with pytest.raises(UsageError, match=r"a\.de has 3 lines but .*a\.en has 2"):
        check_sources(data, is_text=False, base=tmp_path)


def test_aligned_files_have_to_come_in_pairs_of_text(tmp_path: Path) -> None:
    for name in ("a.de", "b.de", "a.en"):
        write(tmp_path / name, b"x\n")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    for given, message in (
        ({"source": ["a.de", "b.de"], "target": "a.en"}, "2 source files but 1 target"),
        ({"source": "a.parquet", "target": "a.en"}, "aligned files are plain text"),
        ({"source": "gone.de", "target": "a.en"}, "no such file"),
    ):
        with pytest.raises(UsageError, match=message):
            check_sources(DataConfig.parse({"train": given}), is_text=False, base=tmp_path)
    with pytest.raises(UsageError, match="this task does not learn from"):
        check_sources(DataConfig.parse({"train": {"source": "a.de", "target": "a.en"}}), is_text=True, base=tmp_path)


def test_digests_and_labels_do_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    found = []
    for folder in ("here", "there/deep"):
        write(tmp_path / folder / "x/a.txt", b"one\n")
        write(tmp_path / folder / "y/a.txt", b"two\n")
        sources = check_sources(DataConfig.parse({"train": "*/a.txt"}), is_text=True, base=tmp_path / folder)
        found.append(sources.digests)
    assert found[0] == found[1]
    assert list(found[0]) == ["train/0/x/a.txt", "train/1/y/a.txt"]
    assert labels([]) == []
