import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rnnlm.data import corpus as corpus_module
from rnnlm.data import spool as spool_module
from rnnlm.data.config import DataConfig
from rnnlm.data.corpus import MANIFEST, read_manifest, read_rows, read_split, read_texts, split_files
from rnnlm.data.ingest import IngestReport, ingest
from rnnlm.data.sources import SPLITS, Sources, check_sources
from rnnlm.demo import corpora
from rnnlm.errors import DataError, RnnlmError, UsageError
from rnnlm.storage import Store, sha256_file

Run = Callable[..., IngestReport]


def test_columns_of_text(tmp_path: Path, run_ingest: Run, corpus: Store) -> None:
    (tmp_path / "a.txt").write_bytes("Ä\nzwei\n\ndrei".encode())
    report = run_ingest(train="a.txt")
    assert list(read_rows(corpus, "train")) == [
        {"id": "a.txt:1", "text": "Ä\nzwei", "num_bytes": 8, "in_train": False, "tags": ""},
        {"id": "a.txt:4", "text": "drei", "num_bytes": 5, "in_train": False, "tags": ""},
    ]
    written = report.written["train"]
    assert (written.units, written.lines, written.num_bytes, written.text_bytes) == (2, 3, 13, 11)


def test_columns_of_pairs_count_the_bytes_of_the_target_as_ingested(
    tmp_path: Path, run_ingest: Run, corpus: Store
) -> None:
    (tmp_path / "a.tsv").write_text("source\ttarget\nq\t  größer  \n")
    run_ingest(is_text=False, train="a.tsv", normalize={"whitespace": "collapse"})
    row = next(read_rows(corpus, "train"))
    assert row == {
        "id": "a.tsv:2",
        "source": "q",
        "target": "  größer  ",
        "num_bytes": len("  größer  ".encode()) + 1,
        "in_train": False,
        "tags": "",
    }


def test_files_and_row_groups_are_bounded_and_rows_keep_their_order(
    tmp_path: Path, run_ingest: Run, corpus: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"{number:06d}" for number in range(1_000)))
    whole = run_ingest(train="a.txt", unit="line").written["train"]
    monkeypatch.setattr(corpus_module, "ROW_GROUP_ROWS", 30)
    monkeypatch.setattr(corpus_module, "FILE_BYTES", 600)
    parts = run_ingest(train="a.txt", unit="line").written["train"]
    assert len(whole.files) == 1
    assert len(parts.files) == 9
    assert parts.digest == whole.digest
    assert sum(file.units for file in parts.files) == parts.units == 1_000
    assert [int(text) for text in read_texts(corpus, "train", "text")] == list(range(1_000))
    assert {batch.num_rows for batch in read_split(corpus, "train")} == {30, 10}
    assert split_files(corpus, "train") == parts.files
    for file in parts.files:
        assert sha256_file(Path(corpus.path(file.name))) == file.sha256
        assert file.sha256[:12] in file.name
    assert split_files(corpus, "valid") == []


def test_the_same_input_gives_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(str(number) for number in range(500)))
    data = DataConfig.parse({"train": "a.txt", "unit": "line"})
    found = []
    for name in ("one", "two"):
        store = Store(str(tmp_path / name))
        ingest(check_sources(data, is_text=True, base=tmp_path), data, seed=3, store=store)
        found.append({file: store.read_bytes(file) for file in store.files()})
    assert found[0] == found[1]


def test_one_document_is_left_of_copies_in_several_batches(
    tmp_path: Path, run_ingest: Run, corpus: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "_BATCH_ROWS", 2)
    (tmp_path / "a.txt").write_text("a\nb\nc\nd\n\n" * 5)
    report = run_ingest(train="a.txt", valid_share=0.25)
    assert report.read["train"].duplicates_dropped == 4
    assert [list(read_texts(corpus, split, "text")) for split in ("train", "valid")] == [["a\nb\n"], ["c\nd"]]


def test_what_a_killed_ingest_left_is_deleted(tmp_path: Path, run_ingest: Run, corpus: Store) -> None:
    (tmp_path / "a.txt").write_text("x\n\ny\n")
    corpus.write_bytes(".scratch/train/units.arrow", b"half")
    run_ingest(train="a.txt")
    assert not corpus.exists(".scratch")
    (tmp_path / "a.txt").write_text("\0\n")
    with pytest.raises(DataError):
        run_ingest(train="a.txt")
    assert not corpus.exists(".scratch")


def test_the_manifest_has_the_report_and_names_the_inputs(tmp_path: Path, run_ingest: Run, corpus: Store) -> None:
    (tmp_path / "a.txt").write_text("x\n\ny\n")
    report = run_ingest(train="a.txt")
    manifest = read_manifest(corpus)
    assert manifest["is_text"] is True
    assert manifest["inputs"] == {"train/0/a.txt": sha256_file(tmp_path / "a.txt")}
    assert manifest["read"]["train"]["files"] == {"a.txt": 3}
    assert {name: manifest[name] for name in ("read", "written", "reject_share")} == json.loads(
        json.dumps(report.as_dict())
    )


def test_a_missing_damaged_or_foreign_corpus_is_told(tmp_path: Path, run_ingest: Run, corpus: Store) -> None:
    with pytest.raises(RnnlmError, match="no corpus here"):
        read_manifest(corpus)
    (tmp_path / "a.txt").write_text("x\n\ny\n")
    file = run_ingest(train="a.txt").written["train"].files[0]
    path = Path(corpus.path(file.name))
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(RnnlmError, match="damaged"):
        list(read_rows(corpus, "train"))
    path.unlink()
    with pytest.raises(RnnlmError, match="missing, though"):
        list(read_rows(corpus, "train"))
    corpus.write_json(MANIFEST, {"format": 99})
    with pytest.raises(RnnlmError, match="format 99"):
        read_manifest(corpus)


def test_progress_counts_bytes_of_text(tmp_path: Path, corpus: Store) -> None:
    class Log(list[tuple[float, float | None]]):
        def update(self, done: float, total: float | None = None, note: str = "") -> None:
            self.append((done, total))

    (tmp_path / "a.txt").write_text("".join(f"{number}\n" for number in range(2_500)))
    data = DataConfig.parse({"train": "a.txt", "unit": "line"})
    log = Log()
    sources = check_sources(data, is_text=True, base=tmp_path)
    ingest(sources, data, seed=0, store=corpus, progress=log)
    assert len(log) == 3
    assert [done for done, _ in log] == sorted(done for done, _ in log)
    assert log[-1][1] == sources.num_bytes == (tmp_path / "a.txt").stat().st_size


def demo_rows(name: str, split: str) -> list[dict[str, str]]:
    size = {"train": 4, "valid": 2, "test": 1}[split]
    if name == "python_docs":
        return [{"id": f"{split}{number}", "text": f"{split} {number}", "tags": ""} for number in range(size)]
    return [{"id": str(n), "source": f"{split} {n}", "target": "t", "tags": "long,rare"} for n in range(size)]


def test_a_demo_corpus_comes_with_ids_and_tags(corpus: Store, tmp_path: Path) -> None:
    data = DataConfig.parse({"demo": "translation", "gate_share": 0})
    sources = check_sources(data, is_text=False, base=tmp_path, demo_rows=demo_rows)
    report = ingest(sources, data, seed=0, store=corpus)
    assert {split: output.units for split, output in report.written.items()} == {
        "train": 4,
        "valid": 2,
        "gate": 0,
        "test": 1,
    }
    assert next(read_rows(corpus, "test")) | {"num_bytes": 0} == {
        "id": "0",
        "source": "test 0",
        "target": "t",
        "num_bytes": 0,
        "in_train": False,
        "tags": "long,rare",
    }
    assert list(sources.digests) == ["demo/translation"]
    data = DataConfig.parse({"demo": "python_docs"})
    with pytest.raises(UsageError, match="'python_docs' has no source/target pairs"):
        check_sources(data, is_text=False, base=tmp_path, demo_rows=demo_rows)


@pytest.mark.parametrize("name", ["python_docs", "translation", "summarization"])
def test_the_size_of_a_demo_corpus_is_that_of_its_texts(name: Any, tmp_path: Path) -> None:
    is_text = name == "python_docs"
    data = DataConfig.parse({"demo": name})
    sources = check_sources(data, is_text=is_text, base=tmp_path, demo_rows=corpora.rows)
    columns = ("text",) if is_text else ("source", "target")
    rows = [row for split in SPLITS for row in corpora.rows(name, split)]
    assert sources.num_bytes == sum(len(row[column].encode()) for row in rows for column in columns)


@dataclass(frozen=True)
class FakeHub:
    """A split of a hub set, in memory."""

    label: str
    rows: list[dict[str, Any]]
    columns: tuple[str, ...] = ()
    digest: str = "d1"
    num_bytes: int = 10

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


def test_a_hub_set_is_read_through_what_opens_it(corpus: Store, tmp_path: Path) -> None:
    def open_hub(data: DataConfig, base: Path) -> dict[str, FakeHub]:
        assert (data.hub, base) == ("owner/set", tmp_path)
        rows = [{"body": "b", "doc": 1}, {"body": None, "doc": 1}, {"body": "c", "doc": 1}, {"body": "d", "doc": 2}]
        return {"train": FakeHub("owner/set/train", rows, ("body", "doc")), "test": FakeHub("owner/set/test", rows)}

    def check(**settings: Any) -> tuple[DataConfig, Sources]:
        data = DataConfig.parse({"hub": "owner/set", "valid_share": 0, "max_reject_share": 1, **settings})
        return data, check_sources(data, is_text=True, base=tmp_path, open_hub=open_hub)

    for settings, texts in (
        ({}, ["b", "c", "d"]),
        ({"unit": "file"}, ["b\nc\nd"]),
        ({"columns": {"group": "doc"}}, ["b\nc", "d"]),
    ):
        columns = {"text": "body"} | settings.pop("columns", {})
        data, sources = check(columns=columns, **settings)
        report = ingest(sources, data, seed=0, store=corpus)
        assert list(read_texts(corpus, "train", "text")) == texts
        assert report.read["train"].quarantined == {"wrong_type": 1}
        assert report.read["test"].in_train == len(texts)
    assert sources.digests == {"hub/owner/set/train": "d1", "hub/owner/set/test": "d1"}
    with pytest.raises(UsageError, match="owner/set/train has no column 'text'; its columns: body, doc"):
        check()


def aligned(folder: str, names: tuple[str, str, str], sides: tuple[str, str]) -> dict[str, Any]:
    return {
        split: {"source": f"{folder}/{name}.{sides[0]}", "target": f"{folder}/{name}.{sides[1]}"}
        for split, name in zip(("train", "valid", "test"), names, strict=True)
    }


def rows_and_units(report: IngestReport) -> dict[str, tuple[int, int]]:
    return {split: (reading.rows, reading.units) for split, reading in report.read.items()}


def test_penn_treebank(benchmark_data: Path, run_ingest: Run) -> None:
    files = {split: f"ptb/ptb.{split}.txt" for split in ("train", "valid", "test")}
    report = run_ingest(base=benchmark_data, unit="file", **files)
    assert rows_and_units(report) == {"train": (42_068, 1), "valid": (3_370, 1), "test": (3_761, 1)}
    for split, name in files.items():
        assert report.written[split].num_bytes == (benchmark_data / name).stat().st_size


def test_tinyshakespeare(benchmark_data: Path, run_ingest: Run, corpus: Store) -> None:
    files = {split: f"tinyshakespeare/{split}.txt" for split in ("train", "valid")}
    run_ingest(base=benchmark_data, unit="file", **files)
    lengths = {split: sum(map(len, read_texts(corpus, split, "text"))) for split in files}
    assert lengths == {"train": 1_003_854, "valid": 111_540}


@pytest.mark.parametrize(("folder", "middle"), [("raw", ""), ("tok", ".lc.norm.tok")])
def test_multi30k(benchmark_data: Path, run_ingest: Run, folder: str, middle: str) -> None:
    names = (f"train{middle}", f"val{middle}", f"test_2016_flickr{middle}")
    files = aligned(f"multi30k/{folder}", names, ("en", "de"))
    report = run_ingest(is_text=False, base=benchmark_data, gate_share=0.5, **files)
    assert rows_and_units(report) == {"train": (29_000,) * 2, "valid": (1_014,) * 2, "test": (1_000,) * 2}
    went = report.read["valid"].went_to
    assert went["valid"] + went["gate"] == 1_014
    assert min(went.values()) > 450
    train = report.read["train"]
    assert (train.duplicates_dropped, report.written["train"].units) == (3, 28_997)


def test_tatoeba(benchmark_data: Path, run_ingest: Run) -> None:
    report = run_ingest(
        is_text=False,
        base=benchmark_data,
        **aligned("tatoeba-de-en", ("train", "valid", "test"), ("de", "en")),
    )
    counts = rows_and_units(report)
    assert counts == {"train": (162_515,) * 2, "valid": (3_287,) * 2, "test": (3_395,) * 2}
    assert [report.read[split].in_train for split in ("valid", "test")] == [0, 0]
    assert [report.written[split].units for split in ("valid", "test")] == [3_287, 3_395]


def test_samsum(benchmark_data: Path, run_ingest: Run, corpus: Store) -> None:
    files = {split: f"samsum/{split}.jsonl" for split in ("train", "valid", "test")}
    columns = {"source": "dialogue", "target": "summary", "id": "id"}
    report = run_ingest(is_text=False, base=benchmark_data, columns=columns, **files)
    assert rows_and_units(report) == {"train": (14_732,) * 2, "valid": (818,) * 2, "test": (819,) * 2}
    assert report.read["train"].quarantined == {"blank": 1}
    assert [report.read[split].in_train for split in ("valid", "test")] == [47, 41]
    assert [report.written[split].units for split in ("valid", "test")] == [818, 819]
    flagged = {split: sum(row["in_train"] for row in read_rows(corpus, split)) for split in ("valid", "test")}
    assert flagged == {"valid": 47, "test": 41}
    assert not any("\r\n" in text for text in read_texts(corpus, "train", "source"))
