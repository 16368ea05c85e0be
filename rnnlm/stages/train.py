"""Train a model on the tokens of an experiment; a run that was stopped or killed goes on from its last checkpoint."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rnnlm.stages import initial as initials
from rnnlm.stages.context import Context, Outcome, Work
from rnnlm.storage import Store

if TYPE_CHECKING:
    from rnnlm.artifacts import Record
    from rnnlm.console import Progress
    from rnnlm.integrations.ray_train import TrainResult
    from rnnlm.models.config import ModelConfig
    from rnnlm.stages.initial import Initial

CURVES_FILE = "curves.png"


def run(context: Context) -> Outcome:
    """Do the stage."""
    experiment = context.experiment
    tokens = context.newest("tokenize_corpus")
    initial = initials.find(context)
    inputs = {"tokens": tokens.digest} | ({} if initial is None else {"init": initial.digest})

    def work(folder: Store) -> Work:
        placement = context.placement()
        with context.mlflow_run(folder, "train", inputs) as run_id:
            result = _fit(context, folder, tokens, run_id, placement, initial)
            metrics = {**result.metrics, **_costs(result)}
            _log(context, folder, run_id, result)
        files = {"checkpoint": result.checkpoint, "history": result.history, "curves": CURVES_FILE}
        outputs = {"steps": result.step, "planned_steps": result.planned_steps, "stop": result.stop}
        notes = [describe(result), *warnings(result)]
        if experiment.train.calibrate and result.checkpoint is not None:
            scale = outputs["logit_scale"] = _calibrate(folder, tokens, result.checkpoint, experiment.model)
            context.tracking.set_tags(run_id, {"rnnlm.logit_scale": f"{scale:.4f}"})
            notes.append(f"  calibrated on the valid split: logits times {scale:.3f}")
        if initial is not None:
            outputs["init"] = initial.described
            context.tracking.set_tags(run_id, {"rnnlm.init": f"{initial.package.name}/{initial.package.version}"})
        known = {name: path for name, path in files.items() if path is not None}
        return Work(known, outputs, run_id, metrics, notes=notes)

    return context.run_stage(
        "train", experiment.settings("train"), inputs, work, lambda record: _log_again(context, record)
    )


def _fit(
    context: Context, folder: Store, tokens: "Record", run_id: str, placement: Any, initial: "Initial | None"
) -> "TrainResult":
    from rnnlm.artifacts import TOKENS_FOLDER
    from rnnlm.assemble import tokenizer_of
    from rnnlm.integrations import ray_train

    tokens_store = tokens.store.child(TOKENS_FOLDER)
    tokenizer = tokenizer_of(tokens_store)
    if initial is not None:
        initials.take_over(initial, context, folder, tokenizer)
    job = ray_train.TrainJob(
        experiment=context.experiment,
        vocab_size=tokenizer.vocab_size,
        tokens=tokens_store,
        folder=folder,
        placement=placement,
        tracking_uri=context.options.tracking_uri,
        run_id=run_id,
        init=None if initial is None else folder,
    )
    session = context.ray if placement.num_workers else None
    with context.interrupts.deferred() as stop_requested, context.progress("train") as progress:
        result = ray_train.train(job, session, on_progress=showing(progress), stop_requested=stop_requested)
    context.startup_s += result.startup_s
    return result


def _calibrate(folder: Store, tokens: "Record", checkpoint: str, config: "ModelConfig") -> float:
    """The factor on the logits that suits the valid split; 1 without that split."""
    from rnnlm import assemble
    from rnnlm.artifacts import TOKENS_FOLDER
    from rnnlm.data.shards import has_split, read_tokens
    from rnnlm.evaluation.calibration import best_logit_scale
    from rnnlm.models.language_model import LanguageModel

    store = tokens.store.child(TOKENS_FOLDER)
    if not has_split(store, "valid"):
        return 1.0
    model = assemble.trained_model(config, assemble.tokenizer_of(store).vocab_size, folder.fetch(checkpoint))
    assert isinstance(model, LanguageModel)
    return best_logit_scale(model, read_tokens(store, "valid")["text"])


def showing(progress: "Progress") -> Any:
    """A callback that shows steps and the latest loss."""

    def show(step: int, total: int | None, metrics: Mapping[str, float]) -> None:
        note = "  ".join(f"{name.rpartition('/')[2]} {value:,.3g}" for name, value in metrics.items())
        progress.update(step, total, note)

    return show


def _costs(result: "TrainResult") -> dict[str, float]:
    from rnnlm.training import names

    return {
        names.TOKENS_PER_SECOND: result.tokens_per_second,
        names.phase_seconds("train"): result.seconds,
        names.PEAK_MEMORY: result.peak_mb,
        names.STEPS_AGAIN: result.steps_again,
        names.NUM_PARAMETERS: result.parameters.get("total", 0),
        names.NUM_LAYER_PARAMETERS: result.parameters.get("without_embeddings", 0),
    }


def _log(context: Context, folder: Store, run_id: str, result: "TrainResult") -> None:
    """What the run shows besides its curves: totals, the history, a picture."""
    from rnnlm.integrations.batch_tracker import send_unsent

    tracking = context.tracking
    send_unsent(tracking, folder, run_id)
    tracking.log_once(run_id, _costs(result), step=result.step)
    tags = {"rnnlm.stop": result.stop, "rnnlm.best_step": str(result.best_step)}
    if result.notes:
        tags["rnnlm.exact_resume"] = "false"
    if result.restarts:
        tags["rnnlm.restarts"] = str(result.restarts)
    if result.divergences:
        tags["rnnlm.divergences"] = "; ".join(result.divergences)
    tracking.set_tags(run_id, tags)
    tracking.log_json(run_id, context.experiment.model_dump(mode="json", by_alias=True), "experiment.json")
    if result.history is not None:
        _log_history(context, folder, run_id, result.history)


def _log_history(context: Context, folder: Store, run_id: str, history: str) -> None:
    import pyarrow.parquet as pq

    from rnnlm.evaluation.plots import curves_png
    from rnnlm.training import names

    path = folder.fetch(history)
    columns = pq.read_table(path).to_pydict()
    shown = {names.TRAIN_LOSS: "loss_nats", names.LEARNING_RATE: "learning_rate", names.GRAD_NORM: "grad_norm"}
    curves = {name: (columns["step"], columns[column]) for name, column in shown.items()}
    context.tracking.log_artifact(run_id, path)
    folder.write_bytes(CURVES_FILE, curves_png(curves, title=context.experiment.name))
    context.tracking.log_artifact(run_id, folder.fetch(CURVES_FILE))


def _log_again(context: Context, record: "Record") -> "Record":
    """The curves and figures of a finished training, for a tracking server that has not seen them."""
    folder = record.store
    with context.mlflow_run(folder, "train", record.inputs) as run_id:
        context.tracking.log_once(run_id, record.outputs["metrics"], step=record.outputs["steps"])
        if "history" in record.files:
            _log_history(context, folder, run_id, record.files["history"])
    return replace(record, run_id=run_id)


def describe(result: "TrainResult") -> str:
    """How long it trained, how fast, and why it ended."""
    return (
        f"  {result.step:,} of {result.planned_steps:,} steps in {result.seconds:,.0f} s, "
        f"{result.tokens_per_second:,.0f} tokens/s, best at step {result.best_step:,}, ended: {result.stop}"
    )


def warnings(result: "TrainResult") -> list[str]:
    """What people should know of how it got there."""
    lines = [f"  not exactly as without the stop: {note}" for note in result.notes]
    lines += [f"  {name} was damaged; the checkpoint before it was used" for name in result.damaged]
    if result.restarts:
        lines.append(f"  started again {result.restarts} times, which took {result.steps_again:,} steps anew")
    return [*lines, *(f"  diverged and went back: {divergence}" for divergence in result.divergences)]
