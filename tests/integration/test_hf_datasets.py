"""Hub sets as local folders in the hub's layout, which go through `datasets.load_dataset` like those of the hub."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from rnnlm.data.config import DataConfig
from rnnlm.data.corpus import read_rows
from rnnlm.data.ingest import IngestReport, ingest
from rnnlm.data.sources import Sources, check_sources
from rnnlm.errors import DataError, UnreachableError, UsageError
from rnnlm.integrations.hf_datasets import open_hub
from rnnlm.storage import Store

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    yield
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "wmt-small"
    path.mkdir()
    for split, count in (("train", 40), ("validation", 4)):
        rows = [{"translation": {"de": f"{split} {n}", "en": f"{n} {split}"}} for n in range(count)]
        (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


COLUMNS = {"source": "translation.de", "target": "translation.en"}


def check(base: Path, is_text: bool = False, **settings: Any) -> tuple[Sources, DataConfig]:
    data = DataConfig.parse({"columns": COLUMNS, "gate_share": 0, "test_share": 0, **settings})
    return check_sources(data, is_text=is_text, base=base, open_hub=open_hub), data


def run(base: Path, store: Store, **settings: Any) -> IngestReport:
    sources, data = check(base, **settings)
    return ingest(sources, data, seed=0, store=store)


def test_a_local_folder_in_the_layout_of_the_hub(folder: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "corpus"))
    report = run(tmp_path, store, hub="wmt-small")
    assert {split: reading.rows for split, reading in report.read.items()} == {"train": 40, "valid": 4}
    rows = list(read_rows(store, "train"))
    assert (rows[2]["id"], rows[2]["source"], rows[2]["target"]) == ("wmt-small/train:3", "train 2", "2 train")


def test_the_digest_follows_the_content(folder: Path, tmp_path: Path) -> None:
    first = check(tmp_path, hub="wmt-small")[0].digests
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy / "wmt-small")
    assert check(copy, hub="wmt-small")[0].digests == first
    with (copy / "wmt-small/train.jsonl").open("a") as stream:
        stream.write('{"translation": {"de": "x", "en": "y"}}\n')
    assert check(copy, hub="wmt-small")[0].digests != first


def test_bad_rows_of_a_hub_set_are_put_aside(folder: Path, tmp_path: Path) -> None:
    with (folder / "train.jsonl").open("a") as stream:
        stream.write('{"translation": {"de": null, "en": "y"}}\n{"translation": {"de": "nul \\u0000", "en": "y"}}\n')
    report = run(tmp_path, Store(str(tmp_path / "corpus")), hub=str(folder))
    assert report.read["train"].quarantined == {"wrong_type": 1, "nul": 1}
    assert report.read["train"].kept == 40


def test_splits_and_columns_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no split 'training'; its splits: train, validation"):
        check(tmp_path, hub="wmt-small", hub_splits=["training", "validation", "test"])
    with pytest.raises(UsageError, match=r"no column 'source'; its columns: translation, translation\.de"):
        check(tmp_path, hub="wmt-small", columns={})
    with pytest.raises(UsageError, match=r"'nope' not found.*data\.hub_config"):
        check(tmp_path, hub="wmt-small", hub_config="nope")


def test_an_unknown_folder_or_one_without_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        check(tmp_path, hub="./gone")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(UsageError, match="without data files"):
        check(tmp_path, hub="hollow")


def test_files_that_datasets_would_fail_on_or_misread(tmp_path: Path) -> None:
    for name, content, message in (
        ("hollow", "", "is empty"),
        ("shifted", "source,target\na,b\nc,d,e\n", "row 3: wrong_number_of_fields"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv").write_text(content)
        with pytest.raises(DataError, match=message):
            check(tmp_path, hub=name, columns={})


def test_a_hub_that_is_switched_off(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match=r"nobody/nothing.*HF_HUB_OFFLINE is set") as error:
        check(tmp_path, hub="nobody/nothing")
    assert error.value.exit_code == 1


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (ConnectionError("Couldn't reach 'squad'"), UnreachableError, "cannot be reached"),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'squad' doesn't exist"), UsageError, "no such set"),
        (RuntimeError("Dataset scripts are no longer supported"), UsageError, "no longer supported"),
        (datasets.exceptions.DatasetGenerationError("broken"), DataError, "cannot be read"),
    ],
)
def test_what_datasets_raises_becomes_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception], message: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    with pytest.raises(expected, match=rf"squad at revision abc.*{message}"):
        check(tmp_path, hub="squad", revision="abc")
