"""The command line of every stage: arguments, exit codes, the end summary and the JSON line."""

import argparse
import atexit
import contextlib
import errno
import json
import os
import re
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from rnnlm import __version__, experiment, memory
from rnnlm.batch.lease import MODES, check_lockable, locking
from rnnlm.console import Console
from rnnlm.errors import AlertError, RnnlmError, UnreachableError, UsageError, without_secrets
from rnnlm.experiment import Experiment
from rnnlm.interrupts import Interrupted, Interrupts
from rnnlm.stages import context as places
from rnnlm.stages.context import Context, Options, Outcome, Surroundings
from rnnlm.storage import Store, cache_folder

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "TOKENIZERS_PARALLELISM": "true",
}
"""Defaults of the environment that keep the libraries quiet and closed; what the user has set stays."""

HARD_WORK = ("train", "tune", "run_all", "compare", "generate")
"""Commands that train or decode at length, with `--workers 0` in their own process."""

_DISK_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}

Where = TypeVar("Where", bound=Surroundings)


class Stage(Protocol):
    """What a stage script hands to `main`."""

    def __call__(self, context: Context, /) -> Outcome:
        """Do the work."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_usage().strip()}")


def parser(stage_name: str, description: str | None) -> argparse.ArgumentParser:
    """The options that all stages share, and the experiment with its overrides."""
    result = bare_parser(stage_name, description)
    result.add_argument("experiment", metavar="EXPERIMENT.toml", help="what is learned, from what")
    result.add_argument("overrides", metavar="PATH=VALUE", nargs="*", help="settings laid over the experiment")
    add_shared(result)
    result.add_argument("--check", action="store_true", help="validate and estimate; start nothing, write nothing")
    result.add_argument("--print-config", action="store_true", help="show the whole configuration and end")
    return result


def bare_parser(stage_name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser without arguments, whose mistakes are ours."""
    return _Parser(prog=f"python -m pipelines.{stage_name}", description=description, allow_abbrev=False)


def add_shared(target: argparse.ArgumentParser) -> None:
    """Where a stage runs and how it speaks."""
    target.add_argument(
        "--store", metavar="URI", help=f"where everything is written ({places.STORE_VARIABLE}, else ./store)"
    )
    target.add_argument("--tracking-uri", metavar="URI", help=f"MLflow ({places.TRACKING_VARIABLE}, else in the store)")
    target.add_argument(
        "--address", metavar="RAY", help=f"a running Ray ({places.ADDRESS_VARIABLE}, else one is started)"
    )
    target.add_argument("--workers", metavar="N|MIN:MAX", help="training processes; a range follows the cluster")
    target.add_argument("--cpus-per-worker", type=int, metavar="N")
    target.add_argument("--gpus-per-worker", type=float, metavar="N")
    target.add_argument("--from", dest="from_run", metavar="RUN_ID", help="read this run's record, not the newest")
    target.add_argument("--force", action="store_true", help="do the work although it is done already")
    target.add_argument(
        "--lock",
        choices=MODES,
        default="auto",
        help="where the store cannot lock and no tracking database can: warn (auto), refuse, or never lock",
    )
    target.add_argument("--json", action="store_true", help="end standard output with one JSON object")
    target.add_argument("--version", action="version", version=f"rnnlm {__version__}")


def main(stage_name: str, run: Stage, description: str | None = None, argv: Sequence[str] | None = None) -> int:
    """Run a stage of an experiment from the command line.

    Args:
        stage_name: its name, as in `python -m pipelines.NAME`.
        run: does the work.
        description: shown by `--help`.
        argv: arguments, by default the process's.

    Returns:
        The exit code of the contract.
    """

    def start(arguments: argparse.Namespace) -> int:
        the_experiment = experiment.load(arguments.experiment, arguments.overrides)
        if arguments.print_config:
            print("\n".join(config_lines(the_experiment)))
            return finish(stage_name, arguments.json)
        options = read_options(arguments)
        if arguments.check:
            from rnnlm import preflight

            return execute_check(stage_name, arguments.json, lambda: preflight.check(the_experiment, options))

        def checked(context: Context) -> Outcome:
            check_lockable(context.store)
            return run(context)

        return execute(
            stage_name, arguments.json, options, lambda *seen: Context(the_experiment, options, *seen), checked
        )

    return guarded(stage_name, parser(stage_name, description), start, argv)


def leave(code: int) -> NoReturn:
    """End the process: what Python does at its end, without the destructors of C++ libraries after it.

    In these, Arrow's threads abort or hang now and then (github.com/apache/arrow issues 34314 and 50482), and a command
    that has done its work would end with 134.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads any more
            stream.flush()
    os._exit(code)


def execute_check(stage_name: str, wants_json: bool, check: Callable[[], list[str]]) -> int:
    """Print what a check found; nothing is written."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    print(without_secrets("\n".join(check())))
    return finish(stage_name, wants_json)


def guarded(
    stage_name: str,
    the_parser: argparse.ArgumentParser,
    start: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the arguments and go; a mistake before anything runs becomes its message, exit code and JSON line."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        return start(the_parser.parse_intermixed_args(given))
    except RnnlmError as error:
        return finish(stage_name, "--json" in given, error=error)
    except KeyboardInterrupt:
        return finish(stage_name, "--json" in given, error=Interrupted(signal.SIGINT))
    except Exception as error:
        return finish(stage_name, "--json" in given, error=_in_one_line(error))


def read_options(arguments: argparse.Namespace) -> Options:
    """Options with absolute places.

    Raises:
        UsageError: a relative place in a Ray job, or a count out of range.
    """
    base = Path.cwd()
    for name, least in (("cpus_per_worker", 1), ("gpus_per_worker", 0)):
        at_least(f"--{name.replace('_', '-')}", getattr(arguments, name), least)
    workers, most_workers = read_workers(arguments.workers)
    store = places.resolve_store(arguments.store, base)
    return Options(
        store=store,
        tracking_uri=places.resolve_tracking(arguments.tracking_uri, store, base),
        address=arguments.address or os.environ.get(places.ADDRESS_VARIABLE),
        workers=workers,
        most_workers=most_workers,
        cpus_per_worker=arguments.cpus_per_worker,
        gpus_per_worker=arguments.gpus_per_worker,
        from_run=arguments.from_run,
        force=arguments.force,
        lock=arguments.lock,
        base=base,
    )


def read_workers(given: str | None) -> tuple[int | None, int | None]:
    """Fewest and most training processes of `--workers`; the second is None where the number is fixed.

    Raises:
        UsageError: neither a number nor a range.
    """
    if given is None:
        return None, None
    found = re.fullmatch(r"(\d+)(?::(\d+))?", given)
    if found is None:
        raise UsageError(f"--workers: should be a number of at least 0, or a range such as 1:4 (got {given})")
    least, most = int(found[1]), int(found[2]) if found[2] else None
    if most is not None and not 1 <= least <= most:
        raise UsageError(f"--workers: a range should go from at least 1 to no less (got {given})")
    return least, most


def at_least(option: str, value: float | None, least: float) -> None:
    """Check a number that was given.

    Raises:
        UsageError: it is too small.
    """
    if value is not None and value < least:
        raise UsageError(f"{option}: should be at least {least} (got {value:g})")


def execute(
    stage_name: str,
    wants_json: bool,
    options: Options,
    make: Callable[[Console, Interrupts], Where],
    run: Callable[[Where], Outcome],
) -> int:
    """Run a stage with a log file, live progress, and clean ends whatever happens."""
    if stage_name in HARD_WORK and options.workers == 0:
        memory.start_anew(f"pipelines.{stage_name}")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    started = time.perf_counter()
    with Console(log_path(options.store, stage_name)) as console, Interrupts() as interrupts:
        console.say(f"{stage_name}: log {console.log}")
        where = make(console, interrupts)
        interrupts.last_words = where.close
        outcome: Outcome | None = None
        error: BaseException | None = None
        try:
            with locking(where.locking()):
                outcome = run(where)
            _summary(console, where, outcome, time.perf_counter() - started)
            error = AlertError(outcome.alert) if outcome.alert else None
        except Interrupted as stop:
            error = stop
            again = "\n  ".join(_again(stage_name, sys.argv[1:]))
            console.say(f"{stage_name}: stopped by {stop}; what was done is kept. Go on with:\n  {again}")
        except Exception as failure:
            error = _explain(failure, console)
        try:
            with interrupts.deferred():
                where.close()
        except Interrupted as stop:
            error = error or stop
        return finish(stage_name, wants_json, outcome, error, console, time.perf_counter() - started)


def _again(stage_name: str, given: Sequence[str]) -> list[str]:
    """The command that goes on with a stopped one: without `--force`, which would delete what is kept, and no password."""
    shown = [without_secrets(each) for each in given]
    command = shlex.join(["python", "-m", f"pipelines.{stage_name}", *(each for each in shown if each != "--force")])
    return [command] if shown == list(given) else [command, "(with the credentials of its URIs, which are not shown)"]


def log_path(store: str, stage_name: str) -> Path:
    """Where the log of a command goes: into the store, or into this node's cache when that is remote."""
    name = f"{stage_name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    local = Store(store).local("logs")
    folder = local if local is not None else cache_folder() / "logs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    except OSError as error:
        raise UnreachableError(f"store {store}: cannot be written ({error.strerror})") from None
    return folder / name


def _explain(error: Exception, console: Console) -> RnnlmError:
    """Our message for an error; a stack trace of an unforeseen one goes to the log alone."""
    if isinstance(error, RnnlmError):
        return error
    console.keep("".join(traceback.format_exception(error)))
    for line in console.last_log_lines():
        console.say(f"  | {line}")
    return _in_one_line(error)


def _in_one_line(error: Exception) -> RnnlmError:
    if isinstance(error, OSError) and error.errno in _DISK_TROUBLE:
        return UnreachableError(f"{error.filename or 'a local file'}: {os.strerror(error.errno)}")
    message = str(error).strip().splitlines()
    return RnnlmError(f"{type(error).__name__}: {message[0] if message else 'no message'}")


def _summary(console: Console, where: Surroundings, outcome: Outcome, seconds: float) -> None:
    for note in outcome.notes:
        console.say(note)
    if outcome.metrics:
        console.table(("metric", "value"), [(key, value) for key, value in sorted(outcome.metrics.items())])
    for name, path in outcome.artifacts.items():
        console.say(f"  {name}: {path}")
    local = where.store.local()
    size = f", the store holds {where.store.size_bytes() / 1e6:,.0f} MB" if local is not None else ""
    console.say(f"{outcome.stage}: {'nothing to do' if outcome.skipped else 'done'} in {seconds:.1f} s{size}")
    waiting = where.waiting()
    if waiting is not None:
        console.say(
            f"{outcome.stage}: MLflow is away; what it has not got waits in {waiting}. The next stage on this store"
        )
        console.say("  sends it, or: python -m pipelines.run_all --flush")
    if outcome.next_command:
        console.say(f"next: {outcome.next_command}")


def finish(
    stage_name: str,
    wants_json: bool,
    outcome: Outcome | None = None,
    error: BaseException | None = None,
    console: Console | None = None,
    seconds: float = 0.0,
) -> int:
    """Say the last words: the message of a failure, the log's path, and the JSON line. Returns the exit code."""
    code = 0 if error is None else int(getattr(error, "exit_code", 1))
    say: Callable[[str], None] = console.say if console is not None else print
    if error is not None and not isinstance(error, Interrupted):
        (say if console is not None else _to_stderr)(f"{stage_name}: {error}")
    if console is not None and console.log is not None:
        say(f"{stage_name}: log {console.log}")
    if wants_json:
        result = outcome or Outcome(stage_name)
        line = {
            "stage": stage_name,
            "exit_code": code,
            "error": None if error is None else str(error),
            "skipped": result.skipped if outcome else None,
            "run_id": result.run_id,
            "metrics": result.metrics if outcome else None,
            "model_uri": result.model_uri,
            "artifacts": result.artifacts if outcome else None,
            "seconds": round(seconds, 3),
        }
        say(json.dumps(line, ensure_ascii=False))
    return code


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def config_lines(the_experiment: Experiment) -> list[str]:
    """The whole tree as `path = value` lines that can be pasted into an experiment file."""

    def walk(prefix: str, value: Any) -> list[str]:
        if isinstance(value, dict) and value:
            return [line for key, inner in value.items() for line in walk(_joined(prefix, key), inner)]
        if value is None:
            return [f'{prefix} = "none"']
        return [f"{prefix} = {json.dumps(value, ensure_ascii=False)}"]

    return walk("", the_experiment.model_dump(mode="json", by_alias=True))


def _joined(prefix: str, key: str) -> str:
    """A TOML path with one more key, which is quoted where it has a dot of its own."""
    written = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)
    return f"{prefix}.{written}" if prefix else written
