from itertools import pairwise

from rnnlm.evaluation.breakdown import by_length, by_tag


def test_a_row_counts_for_each_of_its_labels_once():
    assert by_tag(["b, a", "a,a", "", " ,"]) == {"a": [0, 1], "b": [0]}


def test_groups_by_length_cover_every_row_once_and_never_split_a_length():
    texts = ["w " * length for length in [1, 1, 1, 1, 2, 3, 9, 9, 4, 5, 30, 0]]
    groups = by_length(texts, max_bins=4)
    assert sorted(row for _, _, rows in groups for row in rows) == list(range(len(texts)))
    bounds = [(low, high) for low, high, _ in groups]
    assert bounds == sorted(bounds)
    assert all(first[1] < second[0] for first, second in pairwise(bounds))
    assert len(groups) <= 4
    assert groups[0][0] == 0
    assert groups[-1][1] == 30


def test_no_rows_no_groups():
    assert by_length([]) == []
    assert by_length(["one", "two"]) == [(1, 1, [0, 1])]
