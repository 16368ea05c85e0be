"""A word-for-word dictionary learned from pairs: the most that can be had in translation without any context.

IBM Model 1 (Brown et al. 1993, "The Mathematics of Statistical Machine Translation", section 4.1): t(f|e) is the
probability that source word e becomes target word f, every alignment is equally likely, and expectation maximization
gives

    c(f|e) = sum over target words f of all pairs of  t(f|e) / sum over e' in the source of t(f|e')
    t(f|e) = c(f|e) / sum over f' of c(f'|e)

with an empty source word for what has no counterpart.
"""

import re
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Indices = NDArray[np.int32]

_WORD = re.compile(r"\w+|[^\w\s]")
_EMPTY = 0


@dataclass(frozen=True)
class TokenDictionary:
    """The most probable target word of each source word."""

    entries: dict[str, str]

    def translate(self, source: str) -> str:
        """Replace each word in its place and keep blanks and order; a word that was never seen is copied."""
        return _WORD.sub(lambda match: self.entries.get(match.group(), match.group()), source)


def learn_dictionary(
    pairs: Iterable[tuple[str, str]], *, iterations: int = 5, max_links: int = 4_000_000
) -> TokenDictionary:
    """Learn a dictionary from (source, target) pairs.

    Args:
        pairs: the train split.
        iterations: rounds of expectation maximization.
        max_links: word pairs looked at, which bounds time and memory (about 50 bytes each). A larger corpus is thinned
            evenly, in its own order, so that the result is a function of the corpus alone.
    """
    source, target = _Words(), _Words()
    source.index("")  # entry 0, the empty word
    for source_text, target_text in pairs:
        source.add(["", *_WORD.findall(source_text)])
        target.add(_WORD.findall(target_text))
    source_words, target_words = list(source.ids), list(target.ids)
    source_of, target_of, weights = _expectation_maximization(_links(source, target, max_links), iterations)
    return TokenDictionary(
        {source_words[s]: target_words[t] for s, t in _best(source_of, target_of, weights) if s != _EMPTY}
    )


class _Words:
    """The word ids of one side of a corpus, end to end, with the number of words of each row."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.values = array("i")
        self.lengths = array("i")

    def index(self, word: str) -> int:
        return self.ids.setdefault(word, len(self.ids))

    def add(self, words: list[str]) -> None:
        self.values.extend(map(self.index, words))
        self.lengths.append(len(words))


@dataclass(frozen=True)
class _Links:
    """Every (source word, target word) of every pair: L links of U different kinds explain G target words."""

    source: Ints
    """Source word of each kind [U]."""
    target: Ints
    """Target word of each kind [U]."""
    kind: Indices
    """Kind of each link [L]."""
    group: Indices
    """Target word, of the G in the corpus, that each link explains [L]."""


def _links(source: _Words, target: _Words, max_links: int) -> _Links:
    source_lengths = np.frombuffer(source.lengths, dtype=np.int32).astype(np.int64)
    target_lengths = np.frombuffer(target.lengths, dtype=np.int32).astype(np.int64)
    total = int((source_lengths * target_lengths).sum())
    rows = np.arange(0, len(source_lengths), max(1, -(-total // max_links)))
    target_positions = _ranges(_starts(target_lengths)[rows], target_lengths[rows])
    # Each target word meets the source words of its own row.
    row_of_group = np.repeat(rows, target_lengths[rows])
    widths = source_lengths[row_of_group]
    source_positions = _ranges(_starts(source_lengths)[row_of_group], widths)
    group_L = np.repeat(np.arange(len(widths), dtype=np.int32), widths)
    num_targets = max(1, len(target.ids))
    keys_L = np.frombuffer(source.values, dtype=np.int32)[source_positions].astype(np.int64) * num_targets
    keys_L += np.frombuffer(target.values, dtype=np.int32)[target_positions][group_L]
    keys_U, kind_L = np.unique(keys_L, return_inverse=True)
    source_U, target_U = np.divmod(keys_U, num_targets)
    return _Links(source_U, target_U, kind_L.astype(np.int32), group_L)


def _starts(lengths: Ints) -> Ints:
    return np.cumsum(lengths) - lengths


def _ranges(starts: Ints, lengths: Ints) -> Ints:
    """The integers start, start + 1, ... of each range, end to end."""
    positions = np.repeat(starts - _starts(lengths), lengths)
    positions += np.arange(len(positions))
    return positions


def _expectation_maximization(links: _Links, iterations: int) -> tuple[Ints, Ints, Floats]:
    probability_U = np.ones(len(links.source))
    for _ in range(iterations if len(links.kind) else 0):
        weight_L = probability_U[links.kind]
        weight_L /= np.bincount(links.group, weight_L)[links.group]
        count_U = np.bincount(links.kind, weight_L, minlength=len(probability_U))
        probability_U = count_U / np.bincount(links.source, count_U)[links.source]
    return links.source, links.target, probability_U


def _best(source_U: Ints, target_U: Ints, probability_U: Floats) -> list[tuple[int, int]]:
    """For each source word its most probable target word; of equal ones the one that was seen first in the corpus."""
    order = np.lexsort((target_U, -probability_U, source_U))
    ordered = source_U[order]
    first = np.ones(len(ordered), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return list(zip(ordered[first].tolist(), target_U[order][first].tolist(), strict=True))
