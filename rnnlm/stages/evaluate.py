"""Measure the trained model on the test split, beside trivial baselines; everything lands in one MLflow run."""

from dataclasses import replace
from typing import TYPE_CHECKING

from rnnlm.artifacts import Record
from rnnlm.stages.context import Context, Outcome, Work
from rnnlm.storage import Store

if TYPE_CHECKING:
    from rnnlm.assemble import Lineage
    from rnnlm.decoding.generator import Generator
    from rnnlm.evaluation.report import Report

REPORT_FILE = "report.json"
SUMMARY_FILE = "report.md"
SAMPLES_FILE = "samples.json"
_SAMPLE_COLUMNS = ("source", "output", "reference", "score", "confidence", "tags", "id")
"""In the order that MLflow shows."""


def run(context: Context) -> Outcome:
    """Do the stage."""
    from rnnlm import assemble

    experiment = context.experiment
    train = context.newest("train")
    inputs = inputs_of(assemble.lineage(context.store, train))

    def work(folder: Store) -> Work:
        with context.mlflow_run(folder, "evaluate", inputs) as run_id:
            report, pictures = _measure(context, train)
            _write(folder, report, pictures)
            _log(context, run_id, folder, report.metrics())
        files = {"report": REPORT_FILE, "summary": SUMMARY_FILE}
        outputs = {"train": train.digest, "primary": report.primary}
        return Work(files, outputs, run_id, headline(report), notes=describe(report))

    def log_again(record: Record) -> Record:
        with context.mlflow_run(record.store, "evaluate", record.inputs) as run_id:
            _log(context, run_id, record.store, record.store.read_json(REPORT_FILE)["metrics"])
        return replace(record, run_id=run_id)

    return context.run_stage("evaluate", experiment.settings("evaluate"), inputs, work, log_again)


def inputs_of(origin: "Lineage") -> dict[str, str]:
    """Name to digest of what an evaluation of a training reads."""
    from rnnlm import assemble

    return {
        "checkpoint": assemble.checkpoint_digest(origin),
        "corpus": origin.ingest.digest,
        "tokens": origin.tokens.digest,
    }


def _measure(context: Context, train: Record) -> tuple["Report", dict[str, bytes]]:
    from rnnlm import assemble
    from rnnlm.evaluation.plots import report_pngs

    experiment = context.experiment
    origin = assemble.lineage(context.store, train)
    with context.starting_up():
        generator = assemble.generator_of(origin, experiment.decode)
    with context.progress("evaluate") as progress:
        report = assemble.evaluate_split(
            generator, origin, experiment.evaluate.split, experiment.evaluate,
            progress=lambda phase, done, total: progress.update(done, total, phase),
        )  # fmt: skip
    return report, report_pngs(report) | attention_pictures(generator, report)


def attention_pictures(generator: "Generator", report: "Report", count: int = 3) -> dict[str, bytes]:
    """Where the model looked while it wrote the first outputs of the sample table."""
    from rnnlm.evaluation.attention import attention_weights
    from rnnlm.evaluation.plots import attention_png
    from rnnlm.models.seq2seq import Seq2Seq

    if not isinstance(generator.model, Seq2Seq) or generator.model.attention is None:
        return {}
    shown = [attention_weights(generator, sample.source, sample.output) for sample in report.samples[:count]]
    return {f"attention_{number}.png": attention_png(*each) for number, each in enumerate(shown)}


def _write(folder: Store, report: "Report", pictures: dict[str, bytes]) -> None:
    folder.write_json(REPORT_FILE, report.plain())
    folder.write_bytes(SUMMARY_FILE, report.markdown().encode())
    folder.write_json(SAMPLES_FILE, report.sample_rows())
    for name, picture in pictures.items():
        folder.write_bytes(f"pictures/{name}", picture)


def _log(context: Context, run_id: str, folder: Store, metrics: dict[str, float]) -> None:
    tracking = context.tracking
    tracking.log_once(run_id, metrics)
    for name in (REPORT_FILE, SUMMARY_FILE):
        tracking.log_artifact(run_id, folder.fetch(name))
    for name in folder.files("pictures"):
        tracking.log_artifact(run_id, folder.fetch(name), "pictures")
    rows = folder.read_json(SAMPLES_FILE)
    if rows:
        tracking.log_table(run_id, {key: [row[key] for row in rows] for key in _SAMPLE_COLUMNS}, SAMPLES_FILE)


def headline(report: "Report") -> dict[str, float]:
    """The figures of the split and of the baselines, without times."""
    return {name: value for name, value in report.metrics().items() if not name.startswith("time/")}


def describe(report: "Report") -> list[str]:
    """Notes that a reader of the figures needs, signatures among them."""
    signatures = [f"  {name}: {signature}" for name, signature in report.signatures.items()]
    return [f"  {note}" for note in report.notes] + signatures
