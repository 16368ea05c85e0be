"""The report of an evaluation: one object, as `report.json`, as flat metrics, as a table of samples, and for people."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from rnnlm.evaluation.baselines import Baseline
from rnnlm.evaluation.gate import LOWER_IS_BETTER, PRIMARY_METRICS
from rnnlm.training.names import baseline as baseline_key
from rnnlm.training.names import phase_seconds

_NAMES = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "bits_per_byte": "Bits per byte",
    "perplexity": "Perplexity",
    "exact_match": "Exact match",
}
_MARKDOWN_SAMPLES = 10
_SAMPLE_CHARACTERS = 300


def metric_name(metric: str) -> str:
    """A metric as people write it."""
    return _NAMES.get(metric, metric)


@dataclass(frozen=True)
class Subset:
    """Figures of some of the rows."""

    name: str
    num_rows: int
    figures: dict[str, float | None]


@dataclass(frozen=True)
class LengthBin:
    """The quality of the rows whose source has so many words."""

    shortest: int
    longest: int
    num_rows: int
    value: float

    @property
    def label(self) -> str:
        """The range of words, for people."""
        return str(self.shortest) if self.shortest == self.longest else f"{self.shortest}–{self.longest}"


@dataclass(frozen=True)
class Sample:
    """One row of the sample table."""

    id: str
    source: str
    reference: str
    output: str
    score: float | None
    """Quality of the row between 0 and 100: chrF (translate), ROUGE-L (summarize), none (text)."""
    confidence: float | None
    """Mean log-probability of the output's tokens under the model, in nats."""
    tags: str


@dataclass(frozen=True)
class Report:
    """What was measured on a split. Figures are by their short names (`bleu`, `perplexity`)."""

    task: str
    split: str
    num_rows: int
    """Rows scored."""
    num_rows_in_split: int
    figures: dict[str, float | None]
    reasons: dict[str, str] = field(default_factory=dict)
    """Why a figure is null."""
    signatures: dict[str, str] = field(default_factory=dict)
    """How a figure was computed: it compares only with those of the same signature."""
    counts: dict[str, float] = field(default_factory=dict)
    """What the figures were computed from: nats, tokens, bytes, truncated outputs and the like."""
    not_in_train: Subset | None = None
    """The same figures without the rows that also stand in train; none where there are no such rows."""
    baselines: Sequence[Baseline] = ()
    tags: Sequence[Subset] = ()
    lengths: Sequence[LengthBin] = ()
    samples: Sequence[Sample] = ()
    decoding: Mapping[str, Any] = field(default_factory=dict)
    """The decoding settings in effect."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by phase."""

    @property
    def primary(self) -> str:
        """The task's primary metric that this report has."""
        return next(name for name in PRIMARY_METRICS[self.task] if self.figures.get(name) is not None)

    @property
    def notes(self) -> list[str]:
        """What a reader must know before quoting a figure."""
        found = [f"{metric_name(name)} is not given: {reason}." for name, reason in self.reasons.items()]
        if self.num_rows < self.num_rows_in_split:
            found.append(f"Only the first {self.num_rows} of {self.num_rows_in_split} rows were scored.")
        if self.not_in_train is not None:
            seen = self.num_rows - self.not_in_train.num_rows
            found.append(f"{seen} of the rows also stand in train; figures without them are given beside.")
        return found

    def metrics(self) -> dict[str, float]:
        """All figures as one flat mapping, for tracking; what is null is left out."""
        flat = {f"{self.split}/{name}": value for name, value in self.figures.items() if value is not None}
        if self.not_in_train is not None:
            subset = self.not_in_train.figures.items()
            flat.update({f"{self.split}_not_in_train/{name}": value for name, value in subset if value is not None})
        for baseline in self.baselines:
            flat.update({baseline_key(baseline.name, name): value for name, value in baseline.figures.items()})
        flat.update({phase_seconds(phase): value for phase, value in self.seconds.items()})
        return flat

    def plain(self) -> dict[str, Any]:
        """The report as JSON-compatible values, for `report.json`."""
        values = {**asdict(self), "decoding": dict(self.decoding)}
        values["primary"], values["notes"], values["metrics"] = self.primary, self.notes, self.metrics()
        return cast(dict[str, Any], _finite(values))

    def sample_rows(self) -> list[dict[str, Any]]:
        """The sample table, a mapping for each row."""
        return [asdict(sample) for sample in self.samples]

    def markdown(self) -> str:
        """The report for people."""
        parts = [
            f"# Evaluation on {self.split}",
            f"Task {self.task}, {self.num_rows} rows.",
            _figure_table(self),
            "\n".join(f"- {note}" for note in self.notes),
            _baseline_table(self),
            _subset_table("Tag", self.tags),
            _length_table(self),
            _samples(self.samples),
            _details(self),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"


def _finite(value: Any) -> Any:
    """A tree with null for infinite and undefined numbers, which JSON does not know."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(below) for key, below in value.items()}
        case list() | tuple():
            return [_finite(below) for below in value]
    return value


def _figure_table(report: Report) -> str:
    beside = report.not_in_train
    head = ["Figure", "All rows"] + ([f"Not in train ({beside.num_rows} rows)"] if beside else []) + ["How"]
    rows = []
    for name, value in report.figures.items():
        extra = [_number(beside.figures.get(name))] if beside else []
        rows.append([metric_name(name), _number(value), *extra, report.signatures.get(name, "")])
    return _table(head, rows)


def _baseline_table(report: Report) -> str:
    if not report.baselines:
        return ""
    names = list(dict.fromkeys(name for baseline in report.baselines for name in baseline.figures))
    head = ["System", *map(metric_name, names), "What it is"]
    rows = [["**this model**", *(_number(report.figures.get(name)) for name in names), ""]]
    for baseline in report.baselines:
        label = f"{baseline.name} ({baseline.role})"
        rows.append([label, *(_number(baseline.figures.get(name)) for name in names), baseline.about])
    direction = "Lower is better." if report.primary in LOWER_IS_BETTER else "Higher is better."
    return f"## Beside the baselines\n\n{direction}\n\n" + _table(head, rows)


def _subset_table(title: str, subsets: Sequence[Subset]) -> str:
    if not subsets:
        return ""
    names = list(subsets[0].figures)
    rows = [[one.name, str(one.num_rows), *(_number(one.figures.get(name)) for name in names)] for one in subsets]
    return f"## By {title.lower()}\n\n" + _table([title, "Rows", *map(metric_name, names)], rows)


def _length_table(report: Report) -> str:
    if not report.lengths:
        return ""
    rows = [[one.label, str(one.num_rows), _number(one.value)] for one in report.lengths]
    return "## By words of the source\n\n" + _table(["Words", "Rows", metric_name(report.primary)], rows)


def _samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    head = ["Source", "Reference", "Output", "Score"]
    rows = [
        [_cut(one.source), _cut(one.reference), _cut(one.output), _number(one.score)]
        for one in samples[:_MARKDOWN_SAMPLES]
    ]
    return "## Samples\n\n" + _table(head, rows)


def _details(report: Report) -> str:
    lines = [f"- {name}: {_number(value)}" for name, value in report.counts.items()]
    lines += [f"- decode.{name}: {value}" for name, value in report.decoding.items()]
    lines += [f"- {phase}: {value:.1f} s" for phase, value in report.seconds.items()]
    return "## Details\n\n" + "\n".join(lines) if lines else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def _cut(text: str) -> str:
    return text if len(text) <= _SAMPLE_CHARACTERS else text[: _SAMPLE_CHARACTERS - 1] + "…"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 1 else f"{value:,.4g}"
