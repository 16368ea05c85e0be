"""Ten kinds of bad input through the commands: one clear message each, the exit code of the contract, no stack trace."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rnnlm import cli
from rnnlm.stages import ingest, run_all, tokenize_corpus

STAGES: dict[str, Any] = {"ingest": ingest.run, "tokenize_corpus": tokenize_corpus.run, "run_all": run_all.run}
PAIRS = 'task = "translate"\ndata.train = "pairs.tsv"\n'


@dataclass(frozen=True)
class Said:
    """What a command said: its exit code, all its text, and the JSON line."""

    code: int
    text: str
    result: dict[str, Any]


Command = Callable[..., Said]


@pytest.fixture
def command(desk: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a stage in this process."""
    (desk / "pairs.toml").write_text(PAIRS)
    (desk / "pairs.tsv").write_text("source\ttarget\n" + "".join(f"a {n}\tb {n}\n" for n in range(200)))

    def run(stage: str, *argv: str) -> Said:
        code = cli.main(stage, STAGES[stage], None, [*argv, "--json"])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return Said(code, out + err, json.loads(out.splitlines()[-1]))

    return run


def refused(said: Said, code: int, *messages: str) -> None:
    assert (said.code, said.result["exit_code"]) == (code, code)
    for message in messages:
        assert message in said.result["error"]
    lines = [line for line in said.text.splitlines() if not line.startswith("{") and messages[0] in line]
    assert len(lines) == 1  # said once


def rejects(desk: Path) -> list[dict[str, Any]]:
    (path,) = (desk / "store").rglob("rejects.parquet")
    return list(pq.read_table(path).to_pylist())


def test_a_missing_file(desk: Path, command: Command) -> None:
    said = command("ingest", "small.toml", "data.train=absent.txt")
    refused(said, 2, f"data.train: {desk}/absent.txt: no such file")


def test_a_glob_without_a_match(desk: Path, command: Command) -> None:
    refused(command("ingest", "small.toml", "data.train=parts/*.txt"), 2, f"{desk}/parts/*.txt matches no file")


def test_an_empty_file(desk: Path, command: Command) -> None:
    (desk / "empty.txt").touch()
    refused(command("ingest", "small.toml", "data.train=empty.txt"), 3, f"data.train: {desk}/empty.txt: is empty")


@pytest.mark.parametrize("zipped", [False, True])
def test_a_binary_file(desk: Path, command: Command, zipped: bool) -> None:
    content = bytes(range(128, 256)) * 50
    (desk / "photo.txt").write_bytes(gzip.compress(content) if zipped else content)
    refused(command("ingest", "small.toml", "data.train=photo.txt"), 3, f"{desk}/photo.txt: is not UTF-8 text")


def test_an_absent_column(desk: Path, command: Command) -> None:
    (desk / "pairs.tsv").write_text("english\tgerman\nhello\thallo\n")
    said = command("ingest", "pairs.toml")
    refused(
        said, 2, "no column 'source'; its columns: english, german", "no column 'target'", "data.columns.target=NAME"
    )


def test_a_line_of_five_megabytes(desk: Path, command: Command) -> None:
    content = "".join(f"line {n}\n\n" for n in range(100)) + "x" * 5_000_000 + "\n\nlast\n"
    (desk / "corpus.txt").write_text(content)
    said = command("ingest", "small.toml")
    assert (said.code, said.result["error"]) == (0, None)
    assert "1 put aside (over_long 1)" in said.text
    (row,) = rejects(desk)
    assert (row["file"], row["row"], row["reason"]) == ("corpus.txt", 201, "over_long")
    assert len(json.dumps(row)) < 1_000


def test_a_first_line_of_five_megabytes_in_json_lines(desk: Path, command: Command) -> None:
    rows = [{"source": "x" * 5_000_000, "target": "y"}, *({"source": f"a {n}", "target": "b"} for n in range(100))]
    (desk / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = command("ingest", "pairs.toml", "data.train=pairs.jsonl")
    assert (said.code, said.result["error"]) == (0, None)
    assert [(row["row"], row["reason"]) for row in rejects(desk)] == [(1, "over_long")]
    said = command("ingest", "pairs.toml", "data.train=pairs.jsonl", "data.max_row_bytes=6000000")
    assert (said.code, said.result["error"]) == (0, None)
    assert "101 rows, 101 units, 101 kept" in said.text


def test_quotes_in_csv(desk: Path, command: Command) -> None:
    lines = [f"a {n},b {n}" for n in range(200)]
    lines[8], lines[50], lines[150] = '3.5" disk,x', '"open,x', 'c,"d" e'
    (desk / "pairs.csv").write_text("\n".join(["source,target", *lines]) + "\n")
    said = command("ingest", "pairs.toml", "data.train=pairs.csv")
    assert (said.code, said.result["error"]) == (0, None)
    assert "200 rows, 198 units, 198 kept, 2 put aside (bad_csv 2)" in said.text
    assert [(row["row"], row["reason"]) for row in rejects(desk)] == [(52, "bad_csv"), (152, "bad_csv")]


def test_bad_bytes_in_parquet(desk: Path, command: Command) -> None:
    texts = pa.array([b"\xff" if n == 50 else b"a %d" % n for n in range(200)], pa.binary()).cast(
        pa.string(), safe=False
    )
    pq.write_table(pa.table({"source": texts, "target": ["b"] * 200}), desk / "pairs.parquet")
    said = command("ingest", "pairs.toml", "data.train=pairs.parquet")
    assert (said.code, said.result["error"]) == (0, None)
    (row,) = rejects(desk)
    assert (row["file"], row["row"], row["reason"], row["excerpt"]) == ("pairs.parquet", 51, "bad_bytes", "\\xff")


def test_mixed_types(desk: Path, command: Command) -> None:
    rows: list[Any] = [{"source": f"a {n}", "target": f"b {n}"} for n in range(100)]
    rows[10] = {"source": 5, "target": "b"}
    rows[20] = {"source": "a", "target": None}
    rows[30] = {"source": ["a"], "target": "b"}
    (desk / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = command("ingest", "pairs.toml", "data.train=pairs.jsonl")
    assert (said.code, said.result["error"]) == (0, None)
    found = rejects(desk)
    assert [(row["file"], row["row"]) for row in found] == [("pairs.jsonl", number) for number in (11, 21, 31)]
    assert {row["reason"] for row in found} == {"wrong_type"}


def test_too_many_bad_rows(desk: Path, command: Command) -> None:
    (desk / "pairs.tsv").write_text("source\ttarget\n" + "a\tb\n" + "a\tb\tc\n" * 9)
    said = command("ingest", "pairs.toml")
    refused(said, 3, "9 of 10 rows were put aside", "above data.max_reject_share = 0.05", "rejects.parquet")
    assert len(rejects(desk)) == 9


def test_a_misspelt_key(desk: Path, command: Command) -> None:
    (desk / "wrong.toml").write_text(PAIRS + "optim.learning_rate = 1\nmodel.hiden_size = 3\n")
    said = command("ingest", "wrong.toml")
    refused(said, 2, "model.hiden_size: unknown key; did you mean 'hidden_size'?", "optim.learning_rate: unknown key")
    assert "2 mistakes in the configuration (wrong.toml)" in said.text


def test_a_value_out_of_range(desk: Path, command: Command) -> None:
    said = command("ingest", "small.toml", "optim.lr=-1", "data.valid_share=0.9")
    refused(said, 2, "optim.lr: should be greater than 0 (got ", "data.valid_share: should be less than 0.5 (got ")


def test_a_tracking_server_that_is_down(desk: Path, command: Command) -> None:
    said = command("run_all", "small.toml", "--tracking-uri", "http://127.0.0.1:1")
    refused(said, 1, "tracking server http://127.0.0.1:1: does not answer (Connection refused)")
    assert not (desk / "store" / "experiments").exists()
    assert said.result["seconds"] < 60


def test_everything_wrong_is_said_at_once(desk: Path, command: Command) -> None:
    (desk / "empty.txt").touch()
    said = command("ingest", "small.toml", 'data.train=["absent.txt", "empty.txt"]', "data.valid=none/*.txt")
    refused(said, 2, "3 problems with the input:", "absent.txt: no such file", "matches no file", "empty.txt: is empty")


def test_a_stage_before_its_time(desk: Path, command: Command) -> None:
    refused(command("tokenize_corpus", "small.toml"), 2, "first run: python -m pipelines.ingest EXPERIMENT.toml")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["pipelines.ingest", "small.toml", "data.train=absent.txt"], 2, "absent.txt: no such file"),
        (["pipelines.generate", "--model", "nowhere", "--input", "corpus.txt", "--output", "o"], 2, "nowhere: no such folder"),
        (["pipelines.train", "nowhere.toml"], 2, "nowhere.toml: no such experiment file"),
    ],
)  # fmt: skip
def test_as_a_process(desk: Path, words: list[str], code: int, message: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", *words, "--json"], capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == code
    assert "Traceback" not in result.stdout + result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert message in found["error"]
    assert found["exit_code"] == code
