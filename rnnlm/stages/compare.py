"""Several experiments side by side: trained, scored, and drawn as quality against size, time and memory.

What is done already is not done again, so that a comparison that was stopped goes on with the same command.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rnnlm import experiment as files
from rnnlm.artifacts import Record
from rnnlm.config import digest
from rnnlm.errors import UsageError
from rnnlm.experiment import Experiment
from rnnlm.stages import evaluate, ingest, tokenize_corpus, train, tune
from rnnlm.stages.context import Context, Outcome
from rnnlm.storage import Store
from rnnlm.training import names

FOLDER = "comparisons"
FILES = {
    "table": "comparison.json",
    "summary": "comparison.md",
    "picture": "comparison.png",
    "by_length": "by_length.png",
}
_COLUMNS = {
    names.NUM_PARAMETERS: "parameters",
    names.NUM_LAYER_PARAMETERS: "without emb.",
    names.phase_seconds("train"): "train s",
    names.TOKENS_PER_SECOND: "tokens/s",
    names.PEAK_MEMORY: "MB",
}


@dataclass(frozen=True)
class _Member:
    """An experiment, its training, its evaluation, and what both took."""

    experiment: Experiment
    trained: Record
    evaluated: Record
    outcome: Outcome

    @property
    def name(self) -> str:
        return self.experiment.name


def members(paths: Sequence[str], overrides: Sequence[str], variants: Sequence[str] = ()) -> list[Experiment]:
    """The experiments of a comparison.

    Args:
        paths: their files.
        overrides: settings for all.
        variants: settings of their own, `PATH=VALUE PATH=VALUE ...` each, such as `model.cell=gru`: the first experiment is
            taken once with each of them, and named after their first value. All members then get the width at which
            they have as many parameters without embeddings as the first experiment as it stands.

    Raises:
        UsageError: no file, or no width gives as many parameters.
        ConfigError: an experiment that makes no sense.
    """
    if not paths:
        raise UsageError("compare: name at least one EXPERIMENT.toml")
    first, *others = (files.load(path, overrides) for path in paths)
    if not variants:
        return [first, *others]
    alike = []
    for settings in map(shlex.split, variants):
        value = settings[0].partition("=")[2] if settings else ""
        if not value:
            raise UsageError(f"--variant: should be PATH=VALUE ... (got {' '.join(settings)!r})")
        alike.append(files.load(paths[0], [*overrides, *settings, f"name={first.name}-{value}"]))
    from rnnlm.models.matching import layer_parameters, matched

    wanted = layer_parameters(first.model)
    return [each.model_copy(update={"model": matched(each.model, wanted)}) for each in (*alike, *others)]


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
    members = [_one(context.with_experiment(each)) for each in experiments]
    folder = context.store.child(FOLDER, digest({each.name: each.evaluated.digest for each in members})[:16])
    is_written = folder.exists(FILES["table"]) and not context.options.force
    if not is_written:
        _write(folder, _rows(context, members))
    rows = folder.read_json(FILES["table"])
    metric = rows[0]["metric"]
    context.console.say()
    for header, cells in _tables(rows):
        context.console.table(header, cells)
    return Outcome(
        "compare",
        skipped=is_written and all(each.outcome.skipped for each in members),
        metrics={f"{row['experiment']}/{metric}": float(row[metric]) for row in rows},
        artifacts={name: folder.path(file) for name, file in FILES.items() if folder.exists(file)},
        seconds=sum(each.outcome.seconds for each in members),
        startup_s=sum(each.outcome.startup_s for each in members),
    )


def _one(context: Context) -> _Member:
    stages = [ingest.run(context), tokenize_corpus.run(context)]
    if context.experiment.tune.trials:
        stages.append(tune.run(context))
        record = stages[-1].record
        assert record is not None
        context = context.with_experiment(tune.best_experiment(context.experiment, record))
    trained = train.run(context)
    evaluated = evaluate.run(context)
    assert trained.record is not None
    assert evaluated.record is not None
    outcome = Outcome(
        "compare",
        skipped=trained.skipped and evaluated.skipped,
        metrics=trained.metrics | evaluated.metrics,
        seconds=sum(each.seconds for each in (*stages, trained, evaluated)),
        startup_s=sum(each.startup_s for each in (*stages, trained, evaluated)),
    )
    return _Member(context.experiment, trained.record, evaluated.record, outcome)


def _rows(context: Context, members: Sequence[_Member]) -> list[dict[str, Any]]:
    """What is told of each member: its primary figure, what it costs, and its quality by length of the source."""
    rows: list[dict[str, Any]] = []
    for each in members:
        report = each.evaluated.store.read_json(evaluate.REPORT_FILE)
        metric = f"{report['split']}/{report['primary']}"
        figures = {key: each.outcome.metrics[key] for key in (metric, *_COLUMNS)}
        rows.append({"experiment": each.name, "metric": metric, **figures, "lengths": report["lengths"]})
    if members[0].experiment.is_text:
        for row, costs in zip(rows, _generating(context, members), strict=True):
            row |= costs
    return rows


def _generating(context: Context, members: Sequence[_Member]) -> list[dict[str, float]]:
    """Speed and memory of each language model when it writes."""
    from rnnlm import assemble
    from rnnlm.evaluation.costs import generation_speeds, held_memory

    generators = {
        each.name: assemble.generator_of(assemble.lineage(context.store, each.trained), each.experiment.decode)
        for each in members
    }
    speeds = generation_speeds(generators)
    return [
        speeds[name] | held_memory(generator.model_config, generator.tokenizer.vocab_size)
        for name, generator in generators.items()
    ]


def _write(folder: Store, rows: Sequence[dict[str, Any]]) -> None:
    from rnnlm.evaluation.plots import comparison_png, lengths_png

    folder.write_bytes(FILES["picture"], comparison_png(rows, rows[0]["metric"]))
    if rows[0]["lengths"]:
        folder.write_bytes(FILES["by_length"], lengths_png(rows, rows[0]["metric"]))
    written = [_markdown(header, cells) for header, cells in _tables(rows)]
    folder.write_bytes(FILES["summary"], "\n\n".join(written).encode() + b"\n")
    folder.write_json(FILES["table"], rows)


_Table = tuple[list[str], list[list[str]]]


def _tables(rows: Sequence[dict[str, Any]]) -> list[_Table]:
    """For people: the figures; for pairs the quality by words of the source, for text what writing costs."""

    def table(columns: dict[str, str]) -> _Table:
        there = [key for key in columns if any(key in row for row in rows)]
        cells = [[str(row["experiment"]), *(f"{row[key]:,.5g}" if key in row else "" for key in there)] for row in rows]
        return ["experiment", *(columns[key] for key in there)], cells

    metric = rows[0]["metric"]
    tables = [table({metric: metric, **_COLUMNS})]
    if rows[0]["lengths"]:
        header = [f"{each['shortest']}-{each['longest']} words" for each in rows[0]["lengths"]]
        by_length = [[str(row["experiment"]), *(f"{each['value']:.1f}" for each in row["lengths"])] for row in rows]
        tables.append((["experiment", *header], by_length))
    if rows[0].keys() & _writing_columns().keys():
        tables.append(table(_writing_columns()))
    return tables


def _writing_columns() -> dict[str, str]:
    from rnnlm.evaluation import costs

    columns = {costs.STREAM: "one stream, tokens/s", costs.BATCH: f"batch of {costs.BATCH_ROWS}, tokens/s"}
    for key, said in ((costs.held_key, "held"), (costs.full_cache_key, "full cache")):
        columns |= {key(length): f"{said} at {length // 1_000}k, MB" for length in costs.LENGTHS}
    return columns


def _markdown(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
