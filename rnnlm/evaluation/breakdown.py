"""Rows sorted into groups: by label, and by length of the source."""

from collections.abc import Sequence

import numpy as np

MAX_BINS = 6


def by_tag(tags: Sequence[str]) -> dict[str, list[int]]:
    """The rows of each label, in alphabetic order of the labels.

    Args:
        tags: comma-separated labels of each row; a row may have none, or several.
    """
    groups: dict[str, list[int]] = {}
    for row, labels in enumerate(tags):
        for label in dict.fromkeys(part.strip() for part in labels.split(",")):
            if label:
                groups.setdefault(label, []).append(row)
    return dict(sorted(groups.items()))


def by_length(texts: Sequence[str], max_bins: int = MAX_BINS) -> list[tuple[int, int, list[int]]]:
    """Rows in groups of about equal size by their number of words, shortest first.

    Returns:
        (fewest words, most words, rows) of each group. Equal lengths are never split over two groups.
    """
    if not texts:
        return []
    lengths = np.array([len(text.split()) for text in texts])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, max_bins + 1)[1:], method="higher"))
    group_of = np.searchsorted(edges, lengths)
    found = []
    for group in np.unique(group_of):
        rows = np.flatnonzero(group_of == group)
        found.append((int(lengths[rows].min()), int(lengths[rows].max()), rows.tolist()))
    return found
