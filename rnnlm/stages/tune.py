"""Search settings with Ray Tune; the best become an experiment of their own, `best.toml`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rnnlm import experiment as experiments
from rnnlm.artifacts import Record
from rnnlm.errors import RnnlmError, UsageError
from rnnlm.experiment import Experiment
from rnnlm.stages import initial as initials
from rnnlm.stages.context import Context, Outcome, Work
from rnnlm.storage import Store

if TYPE_CHECKING:
    from rnnlm.integrations.ray_tune import SearchResult
    from rnnlm.stages.initial import Initial

BEST_FILE = "best.toml"
TRIALS_FILE = "trials.parquet"


def run(context: Context) -> Outcome:
    """Do the stage."""
    experiment = context.experiment
    if not experiment.tune.trials:
        raise UsageError("tune.trials: is 0, so there is nothing to search; set it and tune.space")
    tokens = context.newest("tokenize_corpus")
    initial = initials.find(context)
    inputs = {"tokens": tokens.digest} | ({} if initial is None else {"init": initial.digest})

    def work(folder: Store) -> Work:
        with context.mlflow_run(folder, "tune", inputs) as run_id:
            result = _search(context, folder, tokens, run_id, initial)
            if result.best is None:
                raise RnnlmError("no trial got as far as a validation; see the log for why")
            _write(context, folder, run_id, result)
        best = result.best
        files = {"best": BEST_FILE, "trials": TRIALS_FILE}
        return Work(files, {"settings": best.settings}, run_id, best.metrics, notes=describe(result))

    return context.run_stage(
        "tune", experiment.settings("tune"), inputs, work, lambda record: _log_again(context, record)
    )


def best_experiment(experiment: Experiment, record: Record) -> Experiment:
    """The experiment with the settings that a search found best."""
    overrides = [f"{path}={_text(value)}" for path, value in record.outputs["settings"].items()]
    return experiments.build(experiment.model_dump(mode="json", by_alias=True), overrides, "the best trial")


def _text(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _search(context: Context, folder: Store, tokens: Record, run_id: str, initial: "Initial | None") -> "SearchResult":
    from rnnlm.artifacts import TOKENS_FOLDER
    from rnnlm.assemble import tokenizer_of
    from rnnlm.integrations import ray_tune
    from rnnlm.integrations.tune_trial import SearchJob
    from rnnlm.training import names

    experiment = context.experiment
    tokens_store = tokens.store.child(TOKENS_FOLDER)
    tokenizer = tokenizer_of(tokens_store)
    if initial is not None:
        initials.take_over(initial, context, folder, tokenizer)
    options = context.options
    placement, concurrency = context.ray.trial_placement(
        experiment.tune.concurrency, options.workers, options.cpus_per_worker, options.gpus_per_worker
    )
    job = SearchJob(
        experiment=experiment,
        vocab_size=tokenizer.vocab_size,
        tokens=tokens_store,
        folder=folder,
        placement=placement,
        concurrency=concurrency,
        tracking_uri=options.tracking_uri,
        artifact_root=context.artifact_root,
        parent_run_id=run_id,
        metric=names.VALID_PERPLEXITY_LANED if experiment.is_text else names.VALID_PERPLEXITY,
        init=None if initial is None else folder,
    )
    with (
        context.interrupts.deferred() as stop_requested,
        context.progress("tune", experiment.tune.trials) as progress,
    ):

        def show(done: int, total: int, metrics: Mapping[str, float]) -> None:
            progress.update(
                done, total, "  ".join(f"best {key.rpartition('/')[2]} {value:.4g}" for key, value in metrics.items())
            )

        return ray_tune.search(
            job, context.ray, tracking=context.tracking, on_progress=show, stop_requested=stop_requested
        )


def _write(context: Context, folder: Store, run_id: str, result: "SearchResult") -> None:
    import tomli_w

    assert result.best is not None
    best = experiments.build(
        context.experiment.model_dump(mode="json", by_alias=True),
        [f"{path}={_text(value)}" for path, value in result.best.settings.items()] + ["tune.trials=0"],
    )
    folder.write_bytes(BEST_FILE, tomli_w.dumps(_without_null(best.model_dump(mode="json", by_alias=True))).encode())
    folder.write_bytes(TRIALS_FILE, _parquet(result.trials))
    for name in (BEST_FILE, TRIALS_FILE):
        context.tracking.log_artifact(run_id, folder.fetch(name))
    context.tracking.log_table(run_id, _columns(result.trials), "trials.json")
    context.tracking.log_once(run_id, result.best.metrics, step=result.best.steps)
    context.tracking.set_tags(run_id, {"rnnlm.best_run": result.best.run_id or ""})


def _log_again(context: Context, record: Record) -> Record:
    folder = record.store
    with context.mlflow_run(folder, "tune", record.inputs) as run_id:
        for name in (BEST_FILE, TRIALS_FILE):
            context.tracking.log_artifact(run_id, folder.fetch(name))
        context.tracking.log_once(run_id, record.outputs["metrics"])
    return replace(record, run_id=run_id)


def _columns(trials: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """One row a trial, its settings and metrics as columns."""
    rows = [
        {"trial": row["number"], "status": row["status"], "steps": row["steps"], "seconds": row["seconds"]}
        | row["settings"] | row["metrics"] | {"run_id": row["run_id"], "error": row["error"]}
        for row in trials
    ]  # fmt: skip
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _parquet(trials: list[dict[str, Any]]) -> bytes:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table(_columns(trials)), sink)
    return sink.getvalue()


def _without_null(tree: Any) -> Any:
    """TOML has no null: what is unset is written as `"none"`, as a task's default may be something else."""
    if isinstance(tree, dict):
        return {key: _without_null(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_without_null(value) for value in tree]
    return "none" if tree is None else tree


def describe(result: "SearchResult") -> list[str]:
    """One line for each trial, the best marked."""
    best = result.best.number if result.best else None
    lines = []
    for row in result.trials:
        settings = "  ".join(
            f"{path}={value:.3g}" if isinstance(value, float) else f"{path}={value}"
            for path, value in row["settings"].items()
        )
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in row["metrics"].items())
        mark = "*" if row["number"] == best else " "
        lines.append(f" {mark} trial {row['number']}: {settings}  ->  {metrics or row['error'] or row['status']}")
    return lines
