"""BLEU and chrF by sacreBLEU, always with the signature that says how they were computed.

Sources: Papineni et al. 2002 (BLEU), Popović 2015 (chrF), Post 2018 (sacreBLEU and its signatures).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sacrebleu.metrics import BLEU, CHRF

from rnnlm.errors import UsageError

_LINE_BREAKS = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class SignedScore:
    """A corpus figure between 0 and 100 and the sacreBLEU signature that it is only comparable under."""

    value: float
    signature: str


def one_line(text: str) -> str:
    """A text with its line breaks turned into spaces, as it has to stand in a file that is read line by line."""
    return _LINE_BREAKS.sub(" ", text)


def bleu(
    outputs: Sequence[str], references: Sequence[str], *, tokenize: str = "13a", lowercase: bool = False
) -> SignedScore:
    """Corpus BLEU of outputs against one reference each, equal to sacreBLEU's command line on the same lines.

    Args:
        outputs: what the system wrote, one text a row.
        references: what was expected, as many.
        tokenize: sacreBLEU's tokenization; `none` for text that is tokenized already.
        lowercase: the case-insensitive figure (`case:lc`).

    Raises:
        UsageError: there are no rows, or the two lists differ in length.
    """
    check_rows(outputs, references)
    metric = _bleu_metric(tokenize, lowercase)
    score = metric.corpus_score(_lines(outputs), [_lines(references)])
    return SignedScore(float(score.score), str(metric.get_signature()))


def chrf(outputs: Sequence[str], references: Sequence[str], *, lowercase: bool = False) -> SignedScore:
    """Corpus chrF2 (character n-grams up to 6) of outputs against one reference each.

    Raises:
        UsageError: there are no rows, or the two lists differ in length.
    """
    check_rows(outputs, references)
    metric = _chrf_metric(lowercase)
    score = metric.corpus_score(_lines(outputs), [_lines(references)])
    return SignedScore(float(score.score), str(metric.get_signature()))


def sentence_chrf(output: str, reference: str, *, lowercase: bool = False) -> float:
    """The chrF2 of one row, for sample tables: unlike BLEU it means something on a single sentence."""
    return float(_chrf_metric(lowercase).sentence_score(one_line(output), [one_line(reference)]).score)


def check_rows(outputs: Sequence[str], references: Sequence[str]) -> None:
    """Refuse what no figure can be computed from.

    Raises:
        UsageError: there are no rows, or the two lists differ in length.
    """
    if len(outputs) != len(references):
        raise UsageError(f"{len(outputs)} outputs cannot be scored against {len(references)} references")
    if not outputs:
        raise UsageError("there are no rows to score")


def _lines(texts: Sequence[str]) -> list[str]:
    return [one_line(text) for text in texts]


@cache
def _bleu_metric(tokenize: str, lowercase: bool) -> Any:
    # `force` only silences the warning about text that is tokenized already; it changes no figure.
    return BLEU(tokenize=tokenize, lowercase=lowercase, force=True)


@cache
def _chrf_metric(lowercase: bool) -> Any:
    return CHRF(lowercase=lowercase)
