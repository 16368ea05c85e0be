"""The figures of written outputs against references, for all rows and for some of them."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from rnnlm.errors import UsageError
from rnnlm.evaluation.bleu import bleu, check_rows, chrf, sentence_chrf
from rnnlm.evaluation.rouge import ROUGE_TYPES, mean_rouge, rouge_signature, row_rouge

Value = TypeVar("Value")

EXACT_MATCH = "exact_match"
"""Share of rows whose output is the reference, blanks apart."""


class Quality(Protocol):
    """The outputs of one system, ready to be scored."""

    def figures(self, rows: Sequence[int] | None = None) -> dict[str, float]:
        """All figures over some rows, or all."""

    def brief(self, rows: Sequence[int]) -> dict[str, float]:
        """The figures of a table by label."""

    def row(self, row: int) -> float:
        """Quality of one row between 0 and 100."""

    def signatures(self) -> dict[str, str]:
        """How each figure is computed."""


def measure(
    task: str, outputs: Sequence[str], references: Sequence[str], *, tokenize: str = "13a", lowercase: bool = False
) -> Quality:
    """The quality of outputs at a task.

    Args:
        task: `translate` (BLEU and chrF) or `summarize` (ROUGE).
        outputs: what the system wrote.
        references: what was expected, as many.
        tokenize: sacreBLEU's tokenization.
        lowercase: sacreBLEU's case-insensitive figures.

    Raises:
        UsageError: there are no rows, the lists differ in length, or the task is another.
    """
    match task:
        case "translate":
            return Translations(outputs, references, tokenize=tokenize, lowercase=lowercase)
        case "summarize":
            return Summaries(outputs, references)
    raise UsageError(f"task should be 'translate' or 'summarize' (got {task!r})")


class Translations:
    """Corpus BLEU and chrF."""

    def __init__(
        self, outputs: Sequence[str], references: Sequence[str], *, tokenize: str = "13a", lowercase: bool = False
    ) -> None:
        check_rows(outputs, references)
        self.outputs, self.references = outputs, references
        self.tokenize, self.lowercase = tokenize, lowercase

    def figures(self, rows: Sequence[int] | None = None) -> dict[str, float]:
        """BLEU, chrF and the share of exact matches."""
        outputs, references = _chosen(self.outputs, rows), _chosen(self.references, rows)
        return {
            "bleu": bleu(outputs, references, tokenize=self.tokenize, lowercase=self.lowercase).value,
            "chrf": chrf(outputs, references, lowercase=self.lowercase).value,
            EXACT_MATCH: exact_match(outputs, references),
        }

    def brief(self, rows: Sequence[int]) -> dict[str, float]:
        """The share of exact matches, and BLEU."""
        outputs, references = _chosen(self.outputs, rows), _chosen(self.references, rows)
        score = bleu(outputs, references, tokenize=self.tokenize, lowercase=self.lowercase)
        return {EXACT_MATCH: exact_match(outputs, references), "bleu": score.value}

    def row(self, row: int) -> float:
        """The chrF of a sentence."""
        return sentence_chrf(self.outputs[row], self.references[row], lowercase=self.lowercase)

    def signatures(self) -> dict[str, str]:
        """Those of sacreBLEU."""
        sample = self.outputs[:1], self.references[:1]
        return {
            "bleu": bleu(*sample, tokenize=self.tokenize, lowercase=self.lowercase).signature,
            "chrf": chrf(*sample, lowercase=self.lowercase).signature,
        }


class Summaries:
    """Mean ROUGE F1."""

    def __init__(self, outputs: Sequence[str], references: Sequence[str]) -> None:
        check_rows(outputs, references)
        self.outputs, self.references = outputs, references
        self.rows = row_rouge(outputs, references)

    def figures(self, rows: Sequence[int] | None = None) -> dict[str, float]:
        """ROUGE-1, -2, -L, -Lsum and the share of exact matches."""
        outputs, references = _chosen(self.outputs, rows), _chosen(self.references, rows)
        return {**mean_rouge(_chosen(self.rows, rows)).values(), EXACT_MATCH: exact_match(outputs, references)}

    def brief(self, rows: Sequence[int]) -> dict[str, float]:
        """The share of exact matches, and ROUGE."""
        figures = self.figures(rows)
        return {name: figures[name] for name in (EXACT_MATCH, "rouge1", "rouge2", "rougeL")}

    def row(self, row: int) -> float:
        """ROUGE-L times 100."""
        return 100.0 * self.rows[row]["rougeL"]

    def signatures(self) -> dict[str, str]:
        """Package, version and options of ROUGE."""
        return dict.fromkeys(ROUGE_TYPES, rouge_signature())


def exact_match(outputs: Sequence[str], references: Sequence[str]) -> float:
    """Share of outputs (0 to 1) that are their reference, differences of blanks apart."""
    same = sum(output.split() == reference.split() for output, reference in zip(outputs, references, strict=True))
    return same / len(outputs) if outputs else 0.0


def _chosen(values: Sequence[Value], rows: Sequence[int] | None) -> Sequence[Value]:
    return values if rows is None else [values[row] for row in rows]
