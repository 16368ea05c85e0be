"""Generate for every row of the input files: as many rows out as in, in order, and nothing twice."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from rnnlm.batch.config import BatchConfig
from rnnlm.config import Config, apply_overrides, merge
from rnnlm.decoding.config import DecodeConfig
from rnnlm.errors import DataError, RnnlmError, UsageError
from rnnlm.stages.context import KEY_TAG, Options, Outcome, Surroundings, check_inputs

if TYPE_CHECKING:
    from rnnlm.batch.inputs import Shard, Snapshot
    from rnnlm.batch.job import Job
    from rnnlm.batch.run import ShardWork
    from rnnlm.integrations.mlflow_registry import Resolved
    from rnnlm.integrations.mlflow_spool import SpooledTracking
    from rnnlm.integrations.mlflow_tracking import Tracking

SHOWN_ROWS = 3


class Settings(Config):
    """The settings of a batch job; those of decoding lie over what the model package says."""

    decode: DecodeConfig = DecodeConfig()
    generate: BatchConfig = BatchConfig()


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        model: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a folder.
        inputs: files or globs.
        output: absolute path or URI of the output folder.
        overrides: `decode.*` and `generate.*` settings.
    """

    model: str
    inputs: tuple[str, ...]
    output: str
    overrides: tuple[str, ...]

    @property
    def is_registered(self) -> bool:
        """Whether the model is one of the tracking server's, not a folder."""
        return self.model.startswith("models:")


def request(model: str, inputs: Sequence[str], output: str, overrides: Sequence[str], base: Path) -> Request:
    """Sort out the command line. Overrides that directly follow `--input` are told from files by their first word.

    Raises:
        ConfigError: a setting that does not exist, or a value out of range.
        UsageError: a relative path in a Ray job.
    """
    settings = [word for word in inputs if word.startswith(("decode.", "generate.")) and "=" in word]
    files = [word for word in inputs if word not in settings]
    everything = (*settings, *overrides)
    Settings.parse(apply_overrides(Settings, {}, everything), "command line")
    check_inputs([*files, output, *([] if model.startswith("models:") else [model])])
    if not files:
        raise UsageError("--input: names no file")
    if not model.startswith("models:") and "://" not in model:
        model = str((base / model).resolve())
    where = output if "://" in output else str((base / output).resolve())
    return Request(model, tuple(files), where, everything)


def run(asked: Request, where: Surroundings) -> Outcome:
    """Do the stage."""
    from rnnlm.batch import job as jobs
    from rnnlm.batch.lease import check_lockable
    from rnnlm.storage import Store

    check_lockable(Store(asked.output))
    startup_before = where.startup_s
    with where.starting_up():
        model, job, taken = prepare(asked, where.options, where.tracking if asked.is_registered else None)
    output = Store(asked.output)
    folder = job.folder(output)
    outcome = Outcome("generate", artifacts={"output": folder.uri, "manifest": folder.path(jobs.MANIFEST_FILE)})
    existing = None if where.options.force else jobs.manifest(folder)
    if existing is not None:
        where.console.say(f"generate: {folder.uri} was finished on {existing['finished'][:19]}; nothing to do")
        outcome.skipped = True
        manifest = existing
        _settle(job, model, output, manifest, where)
    else:
        manifest = _work(job, taken, model, output, where, outcome)
    outcome.metrics = _figures(manifest)
    outcome.notes = _samples(folder, manifest)
    outcome.model_uri = f"models:/{model.name}/{model.version}" if model.version else None
    outcome.alert = _alert(manifest, job.batch)
    outcome.startup_s = where.startup_s - startup_before
    return outcome


def prepare(asked: Request, options: Options, tracking: "Tracking | None") -> "tuple[Resolved, Job, Snapshot]":
    """Find model and input, and settle the settings.

    Args:
        asked: what was asked for.
        options: where the command runs.
        tracking: where registered models are; not needed for a folder.

    Raises:
        UsageError: unknown model or alias, missing file or column.
        DataError: an input file is empty or not text.
    """
    from rnnlm.batch import inputs
    from rnnlm.batch.job import Job, ModelIdentity
    from rnnlm.decoding.build import resolve
    from rnnlm.integrations import mlflow_registry
    from rnnlm.package import read_info

    model = mlflow_registry.resolve(asked.model, tracking)
    info = read_info(model.folder)
    defaults = {"decode": info.decode.plain()}
    settings = Settings.parse(merge(defaults, apply_overrides(Settings, {}, asked.overrides)), "command line")
    # Part of the job's key: a machine on which `auto` is something else makes an output of its own, not a mixture.
    decode = settings.decode.model_copy(update={"precision": resolve(settings.decode, info.precision_checks)})
    taken = inputs.snapshot(asked.inputs, options.base, settings.generate)
    identity = ModelIdentity(model.digest, model.name, model.version)
    return model, Job(identity, taken.plain(), decode, settings.generate), taken


def verify(asked: Request, where: Surroundings) -> Outcome:
    """Check a finished output against its manifest and the input; writes nothing.

    Raises:
        DataError: with all that is wrong.
    """
    from rnnlm.batch import job as jobs
    from rnnlm.batch import verify as verification
    from rnnlm.storage import Store

    _, job, taken = prepare(asked, where.options, _registry(asked, where))
    folder = job.folder(Store(asked.output))
    problems = verification.verify(folder, job, taken)
    if problems:
        raise DataError("\n".join(problems))
    manifest = jobs.manifest(folder)
    assert manifest is not None
    note = f"  {len(job.shard_names):,} parts are as the manifest says, {taken.num_rows:,} rows as the input"
    figures = {name: value for name, value in _figures(manifest).items() if not name.endswith("per_second")}
    return Outcome("generate", metrics=figures, artifacts={"output": folder.uri}, notes=[note])


def check(asked: Request, where: Surroundings) -> list[str]:
    """What the job would do; writes nothing."""
    from rnnlm.batch.lease import check_lockable
    from rnnlm.storage import Store

    Store(asked.output).check_there()
    check_lockable(Store(asked.output), where.locking())
    model, job, taken = prepare(asked, where.options, _registry(asked, where))
    lines = [
        f"model: {model.name} {model.version} ({model.digest[:12]})",
        f"rows: {taken.num_rows:,} in {len(taken.files)} files",
    ]
    return [
        *lines,
        f"output: {asked.output}/run={job.key} in {len(job.shard_names)} parts",
        f"decode: {job.decode.effective()}",
    ]


def _work(
    job: "Job", taken: "Snapshot", model: "Resolved", output: Any, where: Surroundings, outcome: Outcome
) -> dict[str, Any]:
    from rnnlm.batch.run import run_job

    tracking = where.tracking
    if where.options.force:
        _leave_run(tracking, job, model)
    run_id = tracking.start_run(
        _experiment(model), f"generate {job.key}", "generate",
        tags={"rnnlm.model": f"{model.name}/{model.version}"},
        params={"decode": job.decode.effective(), "model": model.name, "version": model.version, "rows": taken.num_rows},
        inputs={entry["name"]: entry["sha256"] for entry in taken.plain()},
        identity={KEY_TAG: job.key},
    )  # fmt: skip
    outcome.run_id = run_id
    with tracking.closing(run_id), where.console.progress("generate", taken.num_rows) as progress:
        done = 0

        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            progress.update(done, taken.num_rows, "rows")

        manifest = run_job(job, taken, output, _worker(job, taken, model, where, advance), anew=where.options.force)
        outcome.seconds = manifest["seconds"]
        _log(tracking, run_id, job, output, manifest)
    return manifest


def _experiment(model: "Resolved") -> str:
    """The MLflow experiment of a model's batch jobs."""
    return f"{model.name}/batch"


def _leave_run(tracking: "SpooledTracking", job: "Job", model: "Resolved") -> None:
    """Keep the run of the work that was finished before from being found: doing it again has a run of its own."""
    run_id = tracking.find_run(_experiment(model), {KEY_TAG: job.key})
    if run_id is not None and tracking.run_status(run_id) == "FINISHED":
        tracking.set_tags(run_id, {KEY_TAG: f"{job.key}, made again"})


def _log(tracking: "SpooledTracking", run_id: str, job: "Job", output: Any, manifest: dict[str, Any]) -> None:
    """What the run of a job shows; what it shows already is not logged again."""
    tracking.log_once(run_id, _figures(manifest))
    tracking.log_json(run_id, manifest, "manifest.json")
    tracking.set_tags(run_id, {"rnnlm.output": job.folder(output).uri})


def _settle(job: "Job", model: "Resolved", output: Any, manifest: dict[str, Any], where: Surroundings) -> None:
    """Close the run of a job that was killed between its manifest and its end, if the tracking server lets us."""
    if _is_absent(where.options.tracking_uri):
        return
    try:
        run_id = where.tracking.find_run(_experiment(model), {KEY_TAG: job.key})
        if run_id is not None and where.tracking.run_status(run_id) != "FINISHED":
            _log(where.tracking, run_id, job, output, manifest)
            where.tracking.end_run(run_id)
    except RnnlmError as error:
        where.console.say(f"generate: the output is whole, whether its run is closed is not known: {error}")


def _registry(asked: Request, where: Surroundings) -> "Tracking | None":
    """The tracking server, asked without sending it anything that waits, and without making a database.

    Raises:
        UsageError: there is no database.
        UnreachableError: there is no answer.
    """
    if not asked.is_registered:
        return None
    uri = where.options.tracking_uri
    if _is_absent(uri):
        raise UsageError(f"{asked.model}: nothing is registered yet, there is no {uri.removeprefix('sqlite:///')}")
    where.check_libraries()
    from rnnlm.integrations.mlflow_tracking import Tracking

    return Tracking(uri)


def _is_absent(tracking_uri: str) -> bool:
    """Whether the tracking database is a file that is not there; MLflow would make it."""
    scheme, _, path = tracking_uri.partition(":///")
    return scheme == "sqlite" and not Path(unquote(path)).exists()


def _worker(
    job: "Job", taken: "Snapshot", model: "Resolved", where: Surroundings, advance: Callable[[int], None]
) -> "Callable[[ShardWork, Iterator[Shard]], None]":
    """In this process where the input is small or no workers are wanted, else on a pool of Ray actors."""
    from rnnlm.batch.run import Worker, in_process

    options = where.options
    is_small = taken.num_rows <= job.batch.in_process_rows and options.address is None
    if options.workers == 0 or is_small:
        from rnnlm.package import load_package

        with where.starting_up():
            return in_process(Worker(load_package(model.folder), model.folder, where.console.say), advance)
    from rnnlm.integrations import ray_generate

    placement = where.ray.placement(options.workers, options.cpus_per_worker, options.gpus_per_worker)
    return ray_generate.on_actors(model.folder, placement, advance)


def _figures(manifest: dict[str, Any]) -> dict[str, float]:
    statuses = {f"batch/rows_{status}": float(count) for status, count in manifest["by_status"].items()}
    rate = {"batch/rows_per_second": manifest["rows"] / max(manifest["seconds"], 1e-6)}
    return {"batch/rows": float(manifest["rows"])} | statuses | rate


def _alert(manifest: dict[str, Any], limits: BatchConfig) -> str | None:
    """Which bounds the rows of a job cross; None: none."""
    bounds = {
        "rejected": ("generate.max_reject_share", limits.max_reject_share),
        "flagged": ("generate.max_flagged_share", limits.max_flagged_share),
    }
    rows, crossed = manifest["rows"], []
    for status, (name, most) in bounds.items():
        count = manifest["by_status"].get(status, 0)
        share = count / max(1, rows)
        if most is not None and share > most:
            crossed.append(f"{count:,} of {rows:,} rows are {status}, a share of {share:.3g}, above {name} = {most:g}")
    return "; ".join(crossed) or None


def _samples(folder: Any, manifest: dict[str, Any]) -> list[str]:
    from rnnlm.batch import job as jobs

    lines = [
        f"  {manifest['rows']:,} rows: "
        + ", ".join(f"{count:,} {status}" for status, count in manifest["by_status"].items())
    ]
    for row in jobs.read_rows(folder, SHOWN_ROWS):
        lines += [f"    {_cut(row['source'])}", f"      -> {_cut(row['output'])}"]
    return lines


def _cut(text: str | None, width: int = 110) -> str:
    shown = (text or "").replace("\n", " ⏎ ")
    return shown if len(shown) <= width else shown[: width - 1] + "…"
