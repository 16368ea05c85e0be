"""Read a corpus, put bad rows aside with reasons, split it, and write it as Parquet."""

from typing import TYPE_CHECKING

from rnnlm.stages.context import Context, Outcome, Work, check_inputs
from rnnlm.storage import Store

if TYPE_CHECKING:
    from rnnlm.data.ingest import IngestReport
    from rnnlm.data.sources import Sources


def run(context: Context) -> Outcome:
    """Do the stage."""
    from rnnlm.artifacts import CORPUS_FOLDER
    from rnnlm.data.ingest import ingest

    experiment = context.experiment
    sources = find_sources(context)

    def work(folder: Store) -> Work:
        corpus = folder.child(CORPUS_FOLDER)
        with context.progress("ingest", sources.num_bytes) as progress:
            report = ingest(sources, experiment.data, seed=experiment.seed, store=corpus, progress=progress)
        return Work({"corpus": CORPUS_FOLDER}, {"report": report.as_dict()}, notes=describe(report))

    return context.run_stage("ingest", experiment.settings("ingest"), sources.digests, work)


def find_sources(context: Context) -> "Sources":
    """Look at everything that the configuration names as input.

    Raises:
        UsageError: something is missing or does not fit.
        DataError: something is empty or not text.
    """
    from rnnlm.data.sources import check_sources

    data, is_text, base = context.experiment.data, context.experiment.is_text, context.options.base
    check_inputs(data.paths())
    if data.hub is not None:
        from rnnlm.integrations.hf_datasets import open_hub

        return check_sources(data, is_text=is_text, base=base, open_hub=open_hub)
    if data.demo is not None:
        from rnnlm.demo.corpora import rows

        return check_sources(data, is_text=is_text, base=base, demo_rows=rows)
    return check_sources(data, is_text=is_text, base=base)


def describe(report: "IngestReport") -> list[str]:
    """One line for each given split: what was read and what became of it."""
    lines = []
    for split, reading in report.read.items():
        parts = [f"{reading.rows:,} rows", f"{reading.units:,} units", f"{reading.kept:,} kept"]
        put_aside = sum(reading.quarantined.values())
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reading.quarantined.items()))
        parts += [f"{put_aside:,} put aside ({reasons})"] if put_aside else []
        parts += [f"{reading.duplicates:,} duplicates"] if reading.duplicates else []
        parts += [f"{reading.in_train:,} also in train"] if reading.in_train else []
        lines.append(f"  {split}: {', '.join(parts)}")
    return lines
