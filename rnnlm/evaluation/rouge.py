"""ROUGE by the rouge-score package: F1, Porter-stemmed, means over rows times 100.

Two figures go by the name of ROUGE-L. `rougeL` takes a text as one sequence of words, so that line breaks in it do not
matter: this is the one to promote and to search by. `rougeLsum` compares sentence by sentence and is several points
higher; it depends on how a text is cut, here by `rnnlm.evaluation.sentences`, and is what the published "ROUGE-L" of
SAMSum and CNN/DailyMail mostly is. Never compare one with the other.

nltk, whose import brings scipy and scikit-learn and takes seconds, is loaded by the first word that is stemmed.

Sources: Lin 2004 (ROUGE); Hyyrö 2004 (bit-parallel length of the longest common subsequence).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Any

from rouge_score.tokenize import tokenize

from rnnlm.evaluation.bleu import check_rows
from rnnlm.evaluation.sentences import units

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


@dataclass(frozen=True)
class RougeScore:
    """Mean F1 times 100 of each ROUGE type, and how it was computed."""

    rouge1: float
    rouge2: float
    rougeL: float
    rougeLsum: float
    signature: str

    def values(self) -> dict[str, float]:
        """The figures by name."""
        return {name: float(getattr(self, name)) for name in ROUGE_TYPES}


def rouge(outputs: Sequence[str], references: Sequence[str]) -> RougeScore:
    """ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum of outputs against one reference each.

    Equal to the mean of the rows that `python -m rouge_score.rouge --use_stemmer --noaggregate` writes for the same
    lines; its aggregate is the median of a random bootstrap around that mean.

    Raises:
        UsageError: there are no rows, or the two lists differ in length.
    """
    return mean_rouge(row_rouge(outputs, references))


def row_rouge(outputs: Sequence[str], references: Sequence[str]) -> list[dict[str, float]]:
    """The F1 values (0 to 1) of each row by ROUGE type.

    Raises:
        UsageError: there are no rows, or the two lists differ in length.
    """
    check_rows(outputs, references)
    scorer = _scorer()
    # The line breaks matter to rougeLsum alone.
    pairs = (("\n".join(units(reference)), "\n".join(units(output))) for output, reference in zip(outputs, references))
    scores = (scorer.score(reference, output) for reference, output in pairs)
    return [{name: float(row[name].fmeasure) for name in ROUGE_TYPES} for row in scores]


def mean_rouge(rows: Sequence[dict[str, float]]) -> RougeScore:
    """The figures of a set of rows, at least one, from the values of each."""
    means = {name: 100.0 * sum(row[name] for row in rows) / len(rows) for name in ROUGE_TYPES}
    return RougeScore(**means, signature=rouge_signature())


def rouge_signature() -> str:
    """How the figures are computed, in the manner of sacreBLEU's signatures."""
    return f"types:{'|'.join(ROUGE_TYPES)};f1;mean;stem:porter;rouge-score:{version('rouge-score')}"


def rouge_words(text: str) -> list[str]:
    """The stemmed words that ROUGE compares: lower-cased runs of a-z and 0-9."""
    words: list[str] = tokenize(text, _Stems())
    return words


def rouge_l_f1(output_words: Sequence[str], reference_words: Sequence[str]) -> float:
    """ROUGE-L's F1 (0 to 1) of two lists of words; the same value as rouge-score's, many times faster."""
    if not output_words or not reference_words:
        return 0.0
    common = longest_common_subsequence(output_words, reference_words)
    return 2.0 * common / (len(output_words) + len(reference_words))


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, a machine word's worth of table cells at a time."""
    positions: dict[str, int] = {}
    for index, word in enumerate(first):
        positions[word] = positions.get(word, 0) | 1 << index
    everything = (1 << len(first)) - 1
    row = everything
    for word in second:
        matches = row & positions.get(word, 0)
        row = (row + matches) | (row - matches)
    return len(first) - (row & everything).bit_count()


class _Stems:
    """A stemmer with a memory: a word is stemmed once, which is most of the time of scoring with ROUGE."""

    def stem(self, word: str) -> str:
        return _stem(word)


class _StemmedWords:
    """rouge-score's own tokenization, with remembered stems."""

    def tokenize(self, text: str) -> list[str]:
        return rouge_words(text)


@lru_cache(maxsize=200_000)
def _stem(word: str) -> str:
    return str(_porter().stem(word))


@cache
def _porter() -> Any:
    from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]

    return PorterStemmer()


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE_TYPES), tokenizer=_StemmedWords())
