import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rnnlm.demo import corpora, splits
from rnnlm.errors import UsageError

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "demo_corpora.json").read_text(encoding="utf-8"))
SYNTHETIC = ("translation", "summarization")


def digest(found):
    return hashlib.sha256(json.dumps(found, ensure_ascii=False).encode()).hexdigest()


@pytest.mark.parametrize("name", SYNTHETIC)
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_synthetic_rows_are_the_same_everywhere(name, split):
    assert digest(corpora.rows(name, split)) == GOLDEN[name][split]


def test_another_process_makes_the_same_rows_and_loads_nothing_heavy():
    code = (
        "import sys, json, hashlib\n"
        "from rnnlm.demo import corpora, splits\n"
        "splits.SIZES['train'] = 0  # drawn last\n"
        "found = corpora.rows('translation', 'test')\n"
        "heavy = {'torch', 'ray', 'mlflow', 'datasets', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "print(hashlib.sha256(json.dumps(found, ensure_ascii=False).encode()).hexdigest(), sorted(heavy))\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert result.stdout.split(maxsplit=1) == [GOLDEN["translation"]["test"], "[]\n"]


@pytest.mark.parametrize("name", ["python_docs", *SYNTHETIC])
def test_every_corpus_has_forty_new_inputs_outside_its_splits(name):
    fresh = corpora.new_inputs(name)
    known = {
        row.get("source", row.get("text")) for split in ("train", "valid", "test") for row in corpora.rows(name, split)
    }
    assert len(set(fresh)) == len(fresh) == 40
    assert not known & set(fresh)


def test_text_rows_and_pair_rows():
    assert {tuple(row) for row in corpora.rows("python_docs", "valid")} == {("id", "text", "tags")}
    assert {tuple(row) for row in corpora.rows("translation", "valid")} == {("id", "source", "target", "tags")}


def test_unknown_names_and_splits_are_usage_errors():
    with pytest.raises(UsageError, match="python_docs, translation, summarization"):
        corpora.rows("novels", "train")
    with pytest.raises(UsageError, match="no demo split is called 'dev'"):
        corpora.rows("translation", "dev")
    with pytest.raises(UsageError, match="novels"):
        corpora.new_inputs("novels")


def test_the_command_writes_files(tmp_path, capsys):
    assert corpora.main(["python_docs", str(tmp_path / "docs")]) == 0
    assert sorted(path.name for path in (tmp_path / "docs").iterdir()) == [
        "new.txt",
        "test.jsonl",
        "train.jsonl",
        "valid.jsonl",
    ]
    lines = (tmp_path / "docs" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == corpora.rows("python_docs", "test")
    assert len((tmp_path / "docs" / "new.txt").read_text(encoding="utf-8").splitlines()) == 40
    assert "test.jsonl" in capsys.readouterr().out


def test_the_command_explains_mistakes(tmp_path, capsys):
    assert corpora.main(["python_docs"]) == 2
    assert corpora.main(["novels", str(tmp_path)]) == 2
    assert "usage: python -m rnnlm.demo.corpora NAME FOLDER" in capsys.readouterr().err


def test_quotas_come_out_exactly():
    for split in ("valid", "test"):
        size = splits.SIZES[split]
        assert size % 30 == 0
        assert 3 * sum(splits.wants_combination(split, index) for index in range(size)) == size
        assert 10 * sum(splits.wants_names(split, index) for index in range(size)) == size
    assert not splits.wants_combination("train", 0)
    assert not splits.wants_names("train", 0)


def test_the_rule_withholds_about_one_combination_in_eight():
    share = sum(splits.withheld(str(first), str(second)) for first in range(100) for second in range(100)) / 10_000
    assert share == pytest.approx(1 / 8, abs=0.015)
    apart = next(str(number) for number in range(100) if splits.withheld("a", str(number)))
    assert splits.any_withheld(["a"], iter([apart]))
    assert not splits.any_withheld(["a"], [])
