"""Several experiments side by side: trained, scored, and drawn as quality against size, time and memory."""

from collections.abc import Sequence
from typing import Any

from rnnlm.config import digest
from rnnlm.errors import UsageError
from rnnlm.experiment import Experiment
from rnnlm.stages import evaluate, ingest, tokenize_corpus, train, tune
from rnnlm.stages.context import Context, Outcome
from rnnlm.training import names

FOLDER = "comparisons"
PICTURE, TABLE = "comparison.png", "comparison.json"
_SIZES = (names.NUM_PARAMETERS, names.NUM_LAYER_PARAMETERS)
_TRAINING = (names.phase_seconds("train"), names.TOKENS_PER_SECOND, names.PEAK_MEMORY)


def run(context: Context, experiments: Sequence[Experiment]) -> Outcome:
    """Train and score each experiment; one that is done already is not done again.

    Args:
        context: of the first of them.
        experiments: with names of their own, of one task.

    Raises:
        UsageError: two of them have one name, or they are of different tasks.
    """
    called = [each.name for each in experiments]
    if len(set(called)) < len(called):
        raise UsageError(f"compare: experiments need names of their own (got {', '.join(called)})")
    if len({each.task for each in experiments}) > 1:
        raise UsageError("compare: figures of different tasks do not compare")
    outcomes = [_one(context.with_experiment(each)) for each in experiments]
    metric = _primary(outcomes[0])
    rows: list[dict[str, Any]] = [
        {
            "experiment": name,
            metric: outcome.metrics[metric],
            **{key: outcome.metrics[key] for key in _SIZES + _TRAINING},
        }
        for name, outcome in zip(called, outcomes, strict=True)
    ]
    console = context.console
    console.say()
    console.table(
        ("experiment", metric, "parameters", "without emb.", "train s", "tokens/s", "MB"),
        [(row["experiment"], *(f"{row[key]:,.6g}" for key in (metric, *_SIZES, *_TRAINING))) for row in rows],
    )
    from rnnlm.evaluation.plots import comparison_png

    folder = context.store.child(FOLDER, digest({"experiments": called, "rows": rows})[:16])
    folder.write_json(TABLE, rows)
    folder.write_bytes(PICTURE, comparison_png(rows, metric))
    files = {"table": folder.path(TABLE), "picture": folder.path(PICTURE)}
    return Outcome(
        "compare",
        skipped=all(each.skipped for each in outcomes),
        metrics={f"{row['experiment']}/{metric}": float(row[metric]) for row in rows},
        artifacts=files,
        seconds=sum(each.seconds for each in outcomes),
        startup_s=sum(each.startup_s for each in outcomes),
    )


def _one(context: Context) -> Outcome:
    """The evaluation of an experiment, with the figures of its training."""
    stages = [ingest.run(context), tokenize_corpus.run(context)]
    if context.experiment.tune.trials:
        stages.append(tune.run(context))
        record = stages[-1].record
        assert record is not None
        context = context.with_experiment(tune.best_experiment(context.experiment, record))
    trained = train.run(context)
    evaluated = evaluate.run(context)
    evaluated.metrics = trained.metrics | evaluated.metrics
    evaluated.seconds += sum(each.seconds for each in (*stages, trained))
    evaluated.startup_s += sum(each.startup_s for each in (*stages, trained))
    evaluated.skipped = evaluated.skipped and trained.skipped
    return evaluated


def _primary(outcome: Outcome) -> str:
    assert outcome.record is not None
    report = outcome.record.store.read_json(evaluate.REPORT_FILE)
    return f"{report['split']}/{report['primary']}"
