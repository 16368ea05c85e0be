"""The command line: arguments, exit codes, last words."""

import errno
import json
import os
import signal
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rnnlm import cli, experiment
from rnnlm.batch.lease import Locking, lease
from rnnlm.errors import DataError, RnnlmError, UnreachableError, UsageError
from rnnlm.interrupts import Interrupted
from rnnlm.stages.context import Context, Options, Outcome
from rnnlm.storage import Store

Last = Callable[[], dict[str, Any]]
ROOT = Path(__file__).parents[3]


def idle(context: Context) -> Outcome:
    """A stage with something to report."""
    context.store.write_bytes("made.txt", b"x")
    return Outcome(
        "idle",
        run_id="r1",
        metrics={"test/bleu": 12.5},
        model_uri="models:/m/1",
        artifacts={"made": context.store.path("made.txt")},
        notes=["a note"],
        next_command="python -m pipelines.other",
    )


def main(stage: Callable[[Context], Outcome], *argv: str) -> int:
    return cli.main("idle", stage, "Sits there.", ["small.toml", *argv])


def raising(error: BaseException) -> Callable[[Context], Outcome]:
    def stage(_: Context) -> Outcome:
        raise error

    return stage


def never(_: Context) -> Outcome:
    raise AssertionError("the stage should not have run")


def test_a_stage_that_works(desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(idle) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    (log,) = (desk / "store" / "logs").iterdir()
    assert lines[0] == lines[-1] == f"idle: log {log}"
    assert "a note" in lines
    assert any("test/bleu" in line and "12.50" in line for line in lines)
    assert f"  made: {desk}/store/made.txt" in lines
    assert any(line.startswith("idle: done in ") and "the store holds" in line for line in lines)
    assert "next: python -m pipelines.other" in lines
    assert err == ""
    assert log.name.startswith("idle-")
    assert "a note" in log.read_text()


def test_the_json_line(desk: Path, last_line: Last) -> None:
    assert main(idle, "--json") == 0
    found = last_line()
    assert found.pop("seconds") >= 0
    assert found == {
        "stage": "idle", "exit_code": 0, "error": None, "skipped": False, "run_id": "r1", "metrics": {"test/bleu": 12.5},
        "model_uri": "models:/m/1", "artifacts": {"made": f"{desk}/store/made.txt"},
    }  # fmt: skip


def test_a_skipped_stage_says_so(desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(lambda _: Outcome("idle", skipped=True)) == 0
    assert "idle: nothing to do in " in capfd.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RnnlmError("odd"), 1, "odd"),
        (UsageError("no such thing"), 2, "no such thing"),
        (DataError("empty"), 3, "empty"),
        (UnreachableError("server is away"), 1, "server is away"),
        (ValueError("inner\nlines"), 1, "ValueError: inner"),
        (KeyError(), 1, "KeyError: no message"),
    ],
)
def test_failures(
    desk: Path, error: Exception, code: int, message: str, last_line: Last, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(raising(error), "--json") == code
    found = last_line()
    assert (found["exit_code"], found["error"]) == (code, message)
    assert (found["stage"], found["metrics"], found["skipped"], found["run_id"]) == ("idle", None, None, None)
    assert main(raising(error)) == code
    out, err = capfd.readouterr()
    assert out.splitlines()[-2] == f"idle: {message}"
    assert out.splitlines()[-1].startswith(f"idle: log {desk}/store/logs/")
    assert "Traceback" not in out + err


def test_an_unforeseen_failure_keeps_its_trace_in_the_log(desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def stage(_: Context) -> Outcome:
        os.write(1, b"library chatter\n")
        os.write(2, b"worker 3: SomeError: it broke\n")
        raise ZeroDivisionError("by zero")

    assert main(stage) == 1
    out, err = capfd.readouterr()
    log = Path(out.splitlines()[-1].removeprefix("idle: log ")).read_text()
    assert "Traceback" in log
    assert "library chatter" in log
    assert "  | worker 3: SomeError: it broke" in out.splitlines()
    assert "  | ZeroDivisionError: by zero" in out.splitlines()
    assert "library chatter" not in out
    assert "Traceback" not in out + err


def test_an_alert_is_told_although_everything_was_written(desk: Path, last_line: Last) -> None:
    def stage(context: Context) -> Outcome:
        outcome = idle(context)
        outcome.alert = "bleu 12.5 is below 20"
        return outcome

    assert main(stage, "--json") == 4
    found = last_line()
    assert found["error"] == "bleu 12.5 is below 20"
    assert found["metrics"] == {"test/bleu": 12.5}
    assert (desk / "store" / "made.txt").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupts(
    desk: Path, number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["idle", "small.toml", "data.train=my corpus.txt"])
    saved = []

    def stage(context: Context) -> Outcome:
        with context.interrupts.deferred() as stop_requested:
            os.kill(os.getpid(), number)
            assert stop_requested()
            saved.append("saved")
        raise AssertionError("deferred work ends in an interrupt")

    before = signal.getsignal(number)
    assert main(stage, "--json") == code
    assert signal.getsignal(number) is before
    assert saved == ["saved"]
    out, err = capfd.readouterr()
    assert "  python -m pipelines.idle small.toml 'data.train=my corpus.txt'" in out.splitlines()
    found = json.loads(out.splitlines()[-1])
    assert (found["exit_code"], found["error"]) == (code, number.name)
    assert "Traceback" not in out + err


def test_the_command_that_goes_on_deletes_nothing_and_tells_no_password(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["small.toml", "--force", "--tracking-uri", "postgresql://me:word@db/mlflow", "--json"]
    monkeypatch.setattr("sys.argv", ["idle", *given])
    assert main(raising(Interrupted(signal.SIGINT))) == 130
    lines = capfd.readouterr().out.splitlines()
    again = lines.index("  python -m pipelines.idle small.toml --tracking-uri postgresql://db/mlflow --json")
    assert lines[again + 1] == "  (with the credentials of its URIs, which are not shown)"
    (log,) = (desk / "store" / "logs").iterdir()
    assert "word" not in log.read_text() + "".join(lines)


def test_no_line_of_ours_tells_a_password(desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def stage(context: Context) -> Outcome:
        context.console.say("look at postgresql://me:word@db/mlflow")
        context.console.keep("ValueError: s3://me:word@bucket/x")
        return Outcome("idle", artifacts={"made": "s3://me:word@bucket/x"})

    assert main(stage, "--json") == 0
    assert main(raising(ValueError("s3://me:word@bucket/x"))) == 1
    out = "".join(capfd.readouterr())
    logs = [path.read_text() for path in (desk / "store" / "logs").iterdir()]
    assert "s3://bucket/x" in out
    assert "word" not in out + "".join(logs)
    assert cli.execute_check("idle", False, lambda: ["tracking postgresql://me:word@db/mlflow"]) == 0
    assert capfd.readouterr().out == "tracking postgresql://db/mlflow\n"


def test_an_interrupt_while_ray_is_being_stopped_is_clean_too(desk: Path, last_line: Last) -> None:
    class Where:
        store = None
        locking = Locking

        def close(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            closed.append(True)

    closed: list[bool] = []
    options = Options(str(desk / "store"), "sqlite:///x.db")
    where: Any = Where()

    def stage(_: Any) -> Outcome:
        raise UsageError("too late")

    code = cli.execute("idle", True, options, lambda *_: where, stage)
    assert closed == [True]
    assert code == 2
    assert last_line()["error"] == "too late"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--wrokers", "2"], "unrecognized arguments: --wrokers"),
        (["--workers", "many"], "--workers: should be a number of at least 0, or a range such as 1:4 (got many)"),
        (["--workers=-1"], "--workers: should be a number of at least 0, or a range such as 1:4 (got -1)"),
        (["--workers", "3:2"], "--workers: a range should go from at least 1 to no less (got 3:2)"),
        (["--workers", "0:2"], "--workers: a range should go from at least 1 to no less (got 0:2)"),
        (["--cpus-per-worker", "0"], "--cpus-per-worker: should be at least 1 (got 0)"),
        (["--gpus-per-worker", "-0.5"], "--gpus-per-worker: should be at least 0 (got -0.5)"),
        (["--store"], "--store: expected one argument"),
        (["--tracking-uri", "mlflow.db"], "--tracking-uri mlflow.db: should be a URI such as"),
        (["--work", "2"], "unrecognized arguments: --work"),
        (["lr=3"], "lr: unknown key"),
        (["optim.lrr=3"], "optim.lrr: unknown key; did you mean 'lr'?"),
        (["optim.lr=-3"], "optim.lr: should be greater than 0 (got"),
        (["word"], "word: an override is written PATH=VALUE"),
    ],
)
def test_mistakes_on_the_command_line(
    desk: Path, argv: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main("idle", never, None, ["small.toml", "--json", *argv]) == 2
    out, err = capfd.readouterr()
    (line,) = out.splitlines()
    found = json.loads(line)
    assert message in found["error"]
    assert found["exit_code"] == 2
    assert message in err
    assert "Traceback" not in err
    assert not (desk / "store").exists()


def test_no_arguments_at_all(desk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["idle"])
    assert cli.main("idle", never) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "the following arguments are required: EXPERIMENT.toml" in err
    assert "usage: python -m pipelines.idle" in err


def test_overrides_may_stand_between_options(desk: Path) -> None:
    seen: list[Context] = []

    def stage(context: Context) -> Outcome:
        seen.append(context)
        return Outcome("idle")

    argv = ["seed=4", "--workers", "3", "optim.lr=1e-4", "--force", "--from", "abc", "--gpus-per-worker", "0.5"]
    assert main(stage, *argv, "train.patience=none") == 0
    (context,) = seen
    assert (context.experiment.seed, context.experiment.optim.lr) == (4, 1e-4)
    assert context.experiment.name == "small"
    options = context.options
    assert (options.workers, options.force, options.from_run, options.gpus_per_worker) == (3, True, "abc", 0.5)
    assert options.store == str(desk / "store")
    assert options.tracking_uri == f"sqlite:///{desk}/store/mlflow.db"
    assert options.base == desk


def test_the_environment_says_where_unless_an_option_does(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNLM_STORE", "elsewhere")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    arguments = cli.parser("idle", None).parse_intermixed_args(["small.toml"])
    options = cli.read_options(arguments)
    assert options.store == str(desk / "elsewhere")
    assert options.tracking_uri == "http://mlflow:5000"
    assert options.address == "10.0.0.1:6379"
    given = ["small.toml", "--store", "s", "--tracking-uri", "sqlite:///t.db", "--address", "local"]
    options = cli.read_options(cli.parser("idle", None).parse_intermixed_args(given))
    assert (options.store, options.address) == (str(desk / "s"), "local")
    assert options.tracking_uri == f"sqlite:///{desk}/t.db"


def test_libraries_are_kept_quiet_but_the_user_has_the_last_word(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")

    def stage(_: Context) -> Outcome:
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
        assert os.environ["RAY_AUTH_MODE"] == "token"
        return Outcome("idle")

    assert main(stage) == 0


@pytest.mark.parametrize(
    "path", sorted((ROOT / "pipelines" / "experiments").glob("*.toml")), ids=lambda path: path.stem
)
def test_the_printed_configuration_can_be_pasted(desk: Path, path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    brings_data = any(word in path.read_text() for word in ("data.demo", "\nhub = "))
    overrides = ["optim.lr=1e-5", *([] if brings_data else ["data.train=files.tsv"])]
    assert cli.main("idle", never, None, [str(path), *overrides, "--print-config"]) == 0
    printed = capfd.readouterr().out
    pasted = desk / "pasted.toml"
    pasted.write_text(printed)
    assert experiment.load(pasted) == experiment.load(path, overrides)
    assert tomllib.loads(printed)["optim"]["lr"] == 1e-5
    assert not (desk / "store").exists()


def test_the_printed_configuration_keeps_odd_values(desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (desk / "odd.toml").write_text(
        'task = "text"\ndata.train = ["a\\"b.txt", "ü\\n\\u0001.txt"]\n[tune]\ntrials = 2\n'
        '[tune.space]\n"optim.lr" = {kind = "uniform", low = 1e-7, high = 1e22}\n'
        '"train.patience" = {kind = "choice", values = [1, "none", true]}\n'
    )
    assert cli.main("idle", never, None, ["odd.toml", "--print-config", "--json"]) == 0
    *lines, last = capfd.readouterr().out.splitlines()
    assert json.loads(last)["exit_code"] == 0
    (desk / "pasted.toml").write_text("\n".join(lines))
    assert experiment.load("pasted.toml") == experiment.load("odd.toml")


def test_what_was_unset_is_unset_in_the_printed_configuration(desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    unset = ["decode.top_p=none"]
    assert experiment.load("small.toml").decode.top_p is not None
    assert cli.main("idle", never, None, ["small.toml", *unset, "--print-config"]) == 0
    (desk / "pasted.toml").write_text(capfd.readouterr().out)
    assert experiment.load("pasted.toml") == experiment.load("small.toml", unset)


def test_help_and_version_end_well(desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for option, text in (("--help", "Sits there."), ("--version", "rnnlm ")):
        with pytest.raises(SystemExit) as end:
            cli.main("idle", never, "Sits there.", [option])
        assert end.value.code == 0
        assert text in capfd.readouterr().out


def test_a_store_that_cannot_be_written(desk: Path, last_line: Last) -> None:
    (desk / "taken").write_text("a file")
    assert main(never, "--json", "--store", "taken") == 1
    assert last_line()["error"] == f"store {desk}/taken: cannot be written (Not a directory)"


def test_the_log_of_a_remote_store_lies_in_the_cache(desk: Path) -> None:
    path = cli.log_path("s3://bucket/folder", "idle")
    assert path.parent == desk.parent / "cache" / "logs"
    assert path.parent.is_dir()


def test_interrupts_before_the_work_are_no_stack_trace(desk: Path, last_line: Last) -> None:
    def start(_: Any) -> int:
        raise KeyboardInterrupt

    assert cli.guarded("idle", cli.bare_parser("idle", None), start, []) == 130
    parser = cli.bare_parser("idle", None)
    parser.add_argument("--json", action="store_true")
    assert cli.guarded("idle", parser, start, ["--json"]) == 130
    assert last_line()["exit_code"] == 130


def test_an_unforeseen_failure_before_the_work_is_no_stack_trace(desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def start(_: Any) -> int:
        raise ZeroDivisionError("by zero")

    assert cli.guarded("idle", cli.bare_parser("idle", None), start, []) == 1
    assert capfd.readouterr().err == "idle: ZeroDivisionError: by zero\n"


@pytest.mark.parametrize(
    ("given", "expected"), [(None, (None, None)), ("0", (0, None)), ("3", (3, None)), ("1:4", (1, 4)), ("2:2", (2, 2))]
)
def test_workers_are_a_number_or_a_range(given: str | None, expected: tuple[int | None, int | None]) -> None:
    assert cli.read_workers(given) == expected


def test_a_full_disk_is_told_with_its_path(desk: Path, last_line: Last) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/somewhere/file")
    assert main(raising(full), "--json") == 1
    assert last_line()["error"] == "/somewhere/file: No space left on device"


def test_leases_of_a_command_are_taken_as_its_options_say(desk: Path, last_line: Last) -> None:
    def stage(context: Context) -> Outcome:
        with lease(Store("s3://bucket/x")) as held:
            held.check()
        return Outcome("idle")

    assert main(stage, "--json", "--lock", "none") == 0
    assert main(never, "--json", "--lock", "sometimes") == 2
    remote = ("--store", "s3://bucket/x", "--tracking-uri", "http://127.0.0.1:9", "--lock", "required")
    assert main(never, "--json", *remote) == 2
    assert last_line()["error"].startswith("--lock required: s3://bucket/x cannot create a file exclusively")
