"""`generate`: rows in, as many rows out, with a model in a folder."""

import json
import sys
import types
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines import generate as command
from rnnlm.batch.run import ShardWork, Worker, in_process
from rnnlm.errors import ConfigError, UnreachableError, UsageError
from rnnlm.package import load_package
from rnnlm.stages import context as places
from rnnlm.stages import generate
from rnnlm.stages.context import Surroundings

MODEL = Path(__file__).parents[2] / "golden" / "packages" / "format_1_translate"
Main = Callable[..., int]


@pytest.fixture
def main(desk: Path, memory_tracking: Any, monkeypatch: pytest.MonkeyPatch) -> Main:
    """The command, at a desk with input, and with MLflow in memory."""
    monkeypatch.setattr(Surroundings, "tracking", property(lambda self: memory_tracking))
    (desk / "in.txt").write_text("red foxes\nold\n\nnap low kites\n")

    def run(*argv: str, model: Path | str = MODEL, inputs: tuple[str, ...] = ("in.txt",)) -> int:
        return command.main(["--model", str(model), "--output", "out", *argv, "--input", *inputs])

    return run


def rows(desk: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((desk / "out").glob("run=*/*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_every_line_has_its_row(
    desk: Path, main: Main, memory_tracking: Any, capfd: pytest.CaptureFixture[str], last_line: Callable[[], Any]
) -> None:
    assert main("--json") == 0
    found = last_line()
    (folder,) = (desk / "out").iterdir()
    assert found["artifacts"] == {"output": str(folder), "manifest": f"{folder}/manifest.json"}
    assert found["metrics"]["batch/rows"] == 4
    assert found["metrics"]["batch/rows_per_second"] > 0
    assert (found["skipped"], found["model_uri"]) == (False, None)
    made = rows(desk)
    assert [row["row_id"] for row in made] == [f"in.txt:{number}" for number in (1, 2, 3, 4)]
    assert [row["source"] for row in made] == ["red foxes", "old", "", "nap low kites"]
    golden = {entry["input"]: entry["output"] for entry in json.loads((MODEL / "golden.json").read_text())}
    assert load_package(MODEL)("old") == made[1]["output"]
    assert "old" in golden
    (run,) = memory_tracking.runs.values()
    assert (run["experiment"], run["stage"], run["status"]) == ("format_1_translate/batch", "generate", "FINISHED")
    assert run["artifacts"] == ["manifest.json"]
    assert run["tags"]["rnnlm.output"] == str(folder)
    assert run["metrics"]["batch/rows"] == 4
    assert main() == 0
    out = capfd.readouterr().out
    assert "; nothing to do" in out
    assert "  4 rows: " in out
    assert "    red foxes" in out
    assert len(memory_tracking.runs) == 1


def test_settings_may_stand_with_the_files(desk: Path, main: Main) -> None:
    assert main("generate.shard_rows=2", inputs=("in.txt", "decode.max_length=3", "decode.method=greedy")) == 0
    (manifest,) = (desk / "out").glob("run=*/manifest.json")
    value = json.loads(manifest.read_text())
    assert value["decode"]["max_length"] == 3
    assert value["decode"]["method"] == "greedy"
    assert len(value["parts"]) == 2
    assert all(len(row["output"]) <= 3 for row in rows(desk))


def test_bad_rows_are_rejected_and_the_rest_comes_out(desk: Path, main: Main) -> None:
    (desk / "odd.jsonl").write_bytes(
        b'{"source": "fine", "id": "a"}\n{"source": 3, "id": "b"}\nnot json\n{"source": "%s"}\n' % (b"x" * 500)
    )
    assert main("generate.max_row_bytes=100", inputs=("odd.jsonl",)) == 0
    assert [row["status"] for row in rows(desk)][1:] == ["rejected"] * 3
    (rejects,) = (desk / "out").glob("run=*/rejects.jsonl")
    reasons = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [reason["row_id"] for reason in reasons] == ["odd.jsonl:2", "odd.jsonl:3", "odd.jsonl:4"]
    assert all(reason["reason"] for reason in reasons)


def test_check_says_what_would_happen_and_writes_nothing(
    desk: Path, main: Main, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in desk.iterdir())
    assert main("--check", "generate.shard_rows=3") == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("model: format_1_translate  (")
    assert lines[1] == "rows: 4 in 1 files"
    assert lines[2].startswith(f"output: {desk}/out/run=")
    assert lines[2].endswith(" in 2 parts")
    assert lines[3].startswith("decode: {")
    assert sorted(path.name for path in desk.iterdir()) == before


def test_the_precision_that_is_used_is_part_of_the_key(
    main: Main, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def output(*argv: str) -> str:
        assert main("--check", *argv, model=MODEL.with_name("format_2_translate")) == 0
        return capfd.readouterr().out.splitlines()[2]

    monkeypatch.setattr("rnnlm.decoding.build.supports", lambda precision: True)
    assert output() == output("decode.precision=int8") != output("decode.precision=fp32")
    monkeypatch.setattr("rnnlm.decoding.build.supports", lambda precision: precision == "fp32")
    assert output() == output("decode.precision=fp32")


@pytest.mark.parametrize(
    ("argv", "model", "inputs", "code", "message"),
    [
        (["decode.beam=3"], MODEL, ("in.txt",), 2, "decode.beam: unknown key; did you mean"),
        (["seed=3"], MODEL, ("in.txt",), 2, "seed: unknown key"),
        (["decode.beam_size=0"], MODEL, ("in.txt",), 2, "decode.beam_size: should be"),
        ([], MODEL, ("absent.txt",), 2, "absent.txt: no such file"),
        ([], MODEL, ("*.none",), 2, "matches no file"),
        ([], MODEL, ("decode.beam_size=2",), 2, "--input: names no file"),
        ([], "nowhere", ("in.txt",), 2, "nowhere: no such folder, and not a models:/ URI"),
        ([], ".", ("in.txt",), 2, "is not a model package"),
        ([], MODEL, ("empty.txt",), 3, "empty.txt: is empty"),
        ([], MODEL, ("table.tsv",), 2, "no column 'source' (it has: a, b); see generate.text_column"),
        (["generate.text_column=c"], MODEL, ("table.tsv",), 2, "no column 'c' (it has: a, b)"),
        (["--check"], "models:/nobody@champion", ("in.txt",), 2, "nothing is registered yet"),
        (["--workers", "x"], MODEL, ("in.txt",), 2, "--workers: should be a number of at least 0"),
        (["--from", "abc"], MODEL, ("in.txt",), 2, "--from: means nothing here"),
        (["--check", "--from", "abc"], MODEL, ("in.txt",), 2, "--from: means nothing here"),
        (["--force", "--verify"], MODEL, ("in.txt",), 2, "--force: does not go with --verify"),
        (["generate.max_reject_share=2"], MODEL, ("in.txt",), 2, "generate.max_reject_share: should be"),
    ],
)
def test_what_cannot_be_done(
    desk: Path, main: Main, argv: list[str], model: Any, inputs: tuple[str, ...], code: int, message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (desk / "empty.txt").touch()
    (desk / "table.tsv").write_text("a\tb\n1\t2\n")
    assert main(*argv, model=model, inputs=inputs) == code
    out, err = capfd.readouterr()
    assert message in out + err
    assert "Traceback" not in out + err
    assert not (desk / "out").exists()
    assert not (desk / "store" / "mlflow.db").exists()


def test_the_column_text_is_tried_too(desk: Path, main: Main) -> None:
    (desk / "table.csv").write_text("text,n\nred,1\n")
    assert main(inputs=("table.csv",)) == 0
    assert [row["source"] for row in rows(desk)] == ["red"]


def test_large_input_goes_to_actors(desk: Path, main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def on_actors(package: Path, placement: Any, advance: Any) -> Callable[[ShardWork, Iterator[Any]], None]:
        asked.append(placement)
        return in_process(Worker(load_package(package), package), advance)

    module = types.SimpleNamespace(on_actors=on_actors)
    monkeypatch.setitem(sys.modules, "rnnlm.integrations.ray_generate", module)
    monkeypatch.setattr("rnnlm.integrations.ray_generate", module, raising=False)
    session = types.SimpleNamespace(placement=lambda *wanted: wanted)
    monkeypatch.setattr(Surroundings, "ray", property(lambda self: session))
    assert main("generate.in_process_rows=3", "--workers", "2") == 0
    assert asked == [(2, None, None)]
    assert len(rows(desk)) == 4


def test_without_workers_any_number_of_rows_stays_in_this_process(
    desk: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(self: Surroundings) -> Any:
        raise AssertionError("Ray is not needed")

    monkeypatch.setattr(Surroundings, "ray", property(started))
    assert main("generate.in_process_rows=0", "--workers", "0", "--address", "127.0.0.1:1") == 0
    assert len(rows(desk)) == 4


def test_force_does_a_finished_job_again_with_a_run_of_its_own(
    desk: Path, main: Main, memory_tracking: Any, last_line: Callable[[], Any]
) -> None:
    assert main("generate.shard_rows=2") == 0
    before = {path: (path.read_bytes(), path.stat().st_ino) for path in (desk / "out").glob("run=*/*.parquet")}
    assert main("generate.shard_rows=2", "--force", "--json") == 0
    line = last_line()
    assert (line["skipped"], line["run_id"]) == (False, "run1")
    assert [run["status"] for run in memory_tracking.runs.values()] == ["FINISHED"] * 2
    assert len(before) == 2
    for path, (data, number) in before.items():
        assert path.read_bytes() == data
        assert path.stat().st_ino != number
    assert main("generate.shard_rows=2", "--verify") == 0


def test_force_goes_on_with_a_job_that_has_not_finished(
    desk: Path, main: Main, memory_tracking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main("--force") == 0
    (manifest,) = (desk / "out").glob("run=*/manifest.json")
    (part,) = (desk / "out").glob("run=*/*.parquet")
    memory_tracking.runs["run0"]["status"] = "KILLED"
    manifest.unlink()
    number = part.stat().st_ino
    assert main("--force") == 0
    assert part.stat().st_ino == number
    assert manifest.exists()
    assert memory_tracking.runs["run0"]["status"] == "FINISHED"
    assert len(memory_tracking.runs) == 1


@pytest.fixture
def killed(desk: Path, main: Main, memory_tracking: Any) -> Any:
    """The run of a job with a model in a folder that was killed when its manifest was written."""
    assert main() == 0
    (desk / "store" / "mlflow.db").touch()
    (run,) = memory_tracking.runs.values()
    run.update(status="RUNNING", metrics={}, artifacts=[])
    return run


def test_the_run_of_a_job_that_was_killed_after_its_manifest_is_closed(desk: Path, main: Main, killed: Any) -> None:
    assert main() == 0
    assert killed["status"] == "FINISHED"
    assert killed["metrics"]["batch/rows"] == 4
    assert killed["artifacts"] == ["manifest.json"]


def test_a_finished_job_needs_no_tracking_server(
    desk: Path, main: Main, killed: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def away(self: Surroundings) -> Any:
        raise UnreachableError("no answer")

    monkeypatch.setattr(Surroundings, "tracking", property(away))
    assert main() == 0
    assert "whether its run is closed is not known: no answer" in capfd.readouterr().out
    (desk / "store" / "mlflow.db").unlink()
    assert main() == 0
    assert "not known" not in capfd.readouterr().out
    assert killed["status"] == "RUNNING"


def test_check_and_verify_send_nothing_that_waits(
    desk: Path, main: Main, memory_tracking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rnnlm.integrations import mlflow_registry, mlflow_tracking

    asked: list[Any] = []

    def resolve(uri: str, tracking: Any) -> mlflow_registry.Resolved:
        asked.append(tracking)
        return mlflow_registry.Resolved(MODEL, "animals", "1", "d" * 64)

    def sends(self: Surroundings) -> Any:
        raise AssertionError("it sends what waits in the store")

    monkeypatch.setattr(mlflow_registry, "resolve", resolve)
    monkeypatch.setattr(mlflow_tracking, "Tracking", lambda uri: f"asks {uri}")
    assert main(model="models:/animals/1") == 0
    (desk / "store" / "mlflow.db").touch()
    monkeypatch.setattr(Surroundings, "tracking", property(sends))
    for option in ("--check", "--verify"):
        assert main(option, model="models:/animals/1") == 0
    assert asked == [memory_tracking, *[f"asks sqlite:///{desk}/store/mlflow.db"] * 2]


def test_a_bound_that_is_crossed_is_told_and_everything_is_written(
    desk: Path, main: Main, memory_tracking: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    (desk / "odd.jsonl").write_text('{"source": "red foxes"}\n{"source": 3}\nnot json\n{"source": "old"}\n')

    def ended(*bounds: str) -> tuple[int, dict[str, Any], str]:
        code = main("decode.max_length=1", "--json", *bounds, inputs=("odd.jsonl",))
        out = capfd.readouterr().out
        return code, json.loads(out.splitlines()[-1]), out

    rejected = "2 of 4 rows are rejected, a share of 0.5, above generate.max_reject_share = 0.4"
    flagged = "2 of 4 rows are flagged, a share of 0.5, above generate.max_flagged_share = 0"
    code, line, out = ended("generate.max_reject_share=0.4", "generate.max_flagged_share=0")
    assert code == 4
    assert (line["exit_code"], line["error"], line["skipped"]) == (4, f"{rejected}; {flagged}", False)
    assert f"generate: {rejected}; {flagged}\n" in out
    assert len(list((desk / "out").glob("run=*/manifest.json"))) == 1
    assert [run["status"] for run in memory_tracking.runs.values()] == ["FINISHED"]

    for bounds, error in (
        (["generate.max_reject_share=0.4"], rejected),
        (["generate.max_flagged_share=0"], flagged),
        (["generate.max_reject_share=0.5", "generate.max_flagged_share=0.5"], None),
        ([], None),
    ):
        code, line, _ = ended(*bounds)
        assert (code, line["error"], line["skipped"]) == (4 if error else 0, error, True)
    assert len(list((desk / "out").iterdir())) == 1


def test_a_request_in_a_ray_job_needs_absolute_paths(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = generate.request("model", ["a.txt", "generate.shard_rows=3"], "out", ["decode.beam_size=2"], desk)
    assert (asked.model, asked.inputs, asked.output) == (f"{desk}/model", ("a.txt",), f"{desk}/out")
    assert asked.overrides == ("generate.shard_rows=3", "decode.beam_size=2")
    assert generate.request("models:/m/1", ["a"], "s3://b/x", [], desk).output == "s3://b/x"
    with pytest.raises(ConfigError, match="unknown key"):
        generate.request("m", ["a"], "o", ["decode.x=1"], desk)
    monkeypatch.setenv(places.JOB_VARIABLE, "{}")
    for paths, output in ((["a.txt"], "/o"), (["/a.txt"], "o")):
        with pytest.raises(UsageError, match="in a Ray job the working directory is a temporary copy"):
            generate.request("models:/m/1", paths, output, [], desk)
    generate.request("models:/m/1", ["/a.txt"], "s3://b/o", [], desk)


def test_long_texts_are_cut_in_the_sample() -> None:
    assert generate._cut("a\nb") == "a ⏎ b"
    assert generate._cut(None) == ""
    assert generate._cut("x" * 200) == "x" * 109 + "…"


def test_verify_compares_an_output_with_manifest_and_input(
    desk: Path, main: Main, capfd: pytest.CaptureFixture[str], last_line: Callable[[], Any]
) -> None:
    settings = ["generate.shard_rows=2", "--json"]
    assert main("--verify", *settings) == 3
    assert "has no manifest.json, so the job has not finished" in last_line()["error"]
    assert main(*settings) == 0
    assert main("--verify", *settings) == 0
    assert "2 parts are as the manifest says, 4 rows as the input" in capfd.readouterr().out
    (folder,) = (desk / "out").iterdir()

    first, second = sorted(folder.glob("*.parquet"))
    whole = first.read_bytes()
    first.write_bytes(whole + b"x")
    second.unlink()
    assert main("--verify", *settings) == 3
    error = last_line()["error"]
    assert "part-00000.parquet: is not what was written" in error
    assert "part-00001.parquet: is missing" in error


def test_verify_finds_rows_that_are_not_the_inputs(desk: Path, main: Main, last_line: Callable[[], Any]) -> None:
    settings = ["generate.shard_rows=2", "--json"]
    assert main(*settings) == 0
    (folder,) = (desk / "out").iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    first, second = sorted(folder.glob("*.parquet"))
    whole = second.read_bytes()

    def claim(key: str, *paths: Path) -> None:
        """A manifest that fits files, whatever is in them."""
        parts = [{"file": path.name, "rows": 2, "sha256": sha256(path.read_bytes()).hexdigest()} for path in paths]
        (folder / "manifest.json").write_text(json.dumps({**manifest, "key": key, "parts": parts}))

    second.write_bytes(first.read_bytes())
    claim(manifest["key"], first, second)
    assert main("--verify", *settings) == 3
    assert last_line()["error"] == "part-00001.parquet, row 0: is in.txt:1, the input has in.txt:3 there"

    second.write_bytes(whole)
    pq.write_table(pq.read_table(second).slice(0, 1), second)
    claim("other", second)
    assert main("--verify", *settings) == 3
    error = last_line()["error"]
    assert "manifest.json: key is 'other'" in error
    assert "part-00000.parquet: is not in the manifest" in error
    assert "part-00001.parquet: has 1 rows, the input 2" in error
