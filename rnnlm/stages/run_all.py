"""The whole chain, from the corpus to a registered model; what is done already is skipped."""

import sys
import time

from rnnlm.artifacts import Record
from rnnlm.config import digest
from rnnlm.stages import evaluate, ingest, register, tokenize_corpus, train, tune
from rnnlm.stages.context import Context, Outcome, Surroundings

PIPELINE_TAG = "rnnlm.pipeline"


def run(context: Context) -> Outcome:
    """Do the stages in their order, in one Ray session, below one MLflow run."""
    experiment = context.experiment
    tracking = context.tracking  # that it does not answer should show before there is any work
    outcomes = [ingest.run(context)]
    context.pipeline_run_id = pipeline_run(context, outcomes[0].record)
    with tracking.closing(context.pipeline_run_id):
        outcomes.append(tokenize_corpus.run(context))
        _log_reports(context, outcomes)
        if experiment.tune.trials:
            outcomes.append(tune.run(context))
            record = outcomes[-1].record
            assert record is not None
            context = context.with_experiment(tune.best_experiment(experiment, record))
        outcomes += [stage.run(context) for stage in (train, evaluate, register)]
        tracking.log_once(context.pipeline_run_id or "", outcomes[-2].metrics)
    return summarize(context, outcomes)


def flush(where: Surroundings) -> Outcome:
    """Send what waits for a tracking server that was away."""
    where.tracking.flush()
    return Outcome("run_all", notes=["  nothing waits for MLflow any more"])


def pipeline_run(context: Context, corpus: Record | None) -> str:
    """The parent run: the one of this very experiment and corpus if there is one, so that a restart adds no second.

    The experiment names files, whose contents change: so it is made after `ingest`, which has no run of its own.
    """
    experiment = context.experiment
    assert corpus is not None
    return context.tracking.start_run(
        experiment.name,
        f"pipeline {time.strftime('%Y-%m-%d %H:%M')}",
        "pipeline",
        tags={"rnnlm.task": experiment.task, "rnnlm.command": " ".join(sys.argv[1:])[:4_000]},
        params={"task": experiment.task, "seed": experiment.seed, "data": experiment.data.plain()},
        identity={PIPELINE_TAG: digest({"experiment": experiment.plain(), "corpus": corpus.digest})[:16]},
    )


def _log_reports(context: Context, outcomes: list[Outcome]) -> None:
    """What ingest and tokenize counted, beside the runs that they fed."""
    for outcome in outcomes:
        if outcome.record is not None:
            outputs = outcome.record.outputs
            report = outputs.get("report") or outputs["manifest"]
            context.tracking.log_json(context.pipeline_run_id or "", report, f"{outcome.stage}.json")


def summarize(context: Context, outcomes: list[Outcome]) -> Outcome:
    """One outcome for the chain: the figures of evaluate, the version of register, the time of each stage."""
    notes = [note for outcome in outcomes if not outcome.skipped for note in outcome.notes]
    context.console.table(
        (context.experiment.name, "start-up s", "work s", ""),
        [(each.stage, each.startup_s, each.seconds, "skipped" if each.skipped else "") for each in outcomes],
    )
    evaluated, registered = outcomes[-2], outcomes[-1]
    return Outcome(
        stage="run_all",
        skipped=all(outcome.skipped for outcome in outcomes),
        run_id=context.pipeline_run_id,
        metrics=evaluated.metrics,
        model_uri=registered.model_uri,
        model_alias=registered.model_alias,
        artifacts={
            f"{each.stage}_{name}": path
            for each in outcomes
            for name, path in each.artifacts.items()
            if name != "record"
        },
        seconds=sum(outcome.seconds for outcome in outcomes),
        startup_s=sum(outcome.startup_s for outcome in outcomes),
        notes=notes,
        next_command=registered.next_command,
        record=evaluated.record,
    )
