import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnlm.errors import UsageError
from rnnlm.evaluation.rouge import (
    longest_common_subsequence,
    mean_rouge,
    rouge,
    rouge_l_f1,
    rouge_words,
    row_rouge,
)


def quadratic_lcs(first, second):
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first, 1):
        for j, b in enumerate(second, 1):
            table[i][j] = table[i - 1][j - 1] + 1 if a == b else max(table[i - 1][j], table[i][j - 1])
    return table[-1][-1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abcd"), max_size=80), st.lists(st.sampled_from("abcd"), max_size=80))
def test_bit_parallel_subsequence_is_the_table(first, second):
    assert longest_common_subsequence(first, second) == quadratic_lcs(first, second)


def test_known_values():
    score = rouge(["the cat was under the bed"], ["the cat was found under the bed"])
    assert score.rouge1 == pytest.approx(100 * 2 * (6 / 6) * (6 / 7) / (6 / 6 + 6 / 7))
    assert score.rouge2 == pytest.approx(100 * 2 * (4 / 5) * (4 / 6) / (4 / 5 + 4 / 6))
    assert score.rougeL == score.rouge1 == score.rougeLsum


def test_words_are_stemmed_and_lower_cased():
    assert rouge_words("Running, RUNNERS — 3 dogs!") == ["run", "runner", "3", "dog"]
    assert rouge(["He was running."], ["he was run"]).rouge1 == pytest.approx(100.0)


def test_line_breaks_do_not_matter_to_rouge_l_and_do_to_rouge_lsum():
    reference = "one two three\nfour five six"
    swapped = "four five six\none two three"
    flat = row_rouge([swapped.replace("\n", " ")], [reference.replace("\n", " ")])[0]
    split = row_rouge([swapped.replace("\n", ". ") + "."], [reference.replace("\n", ". ") + "."])[0]
    assert split["rougeL"] == flat["rougeL"] == 0.5
    assert flat["rougeLsum"] == 0.5


def test_rouge_lsum_compares_sentence_by_sentence():
    row = row_rouge(["Four five six. One two three."], ["One two three. Four five six."])[0]
    assert row["rougeL"] == 0.5
    assert row["rougeLsum"] == 1.0


def test_the_fast_rouge_l_equals_the_package():
    output, reference = "A man walks his dog along the river", "The man was walking a dog by the river bank"
    fast = rouge_l_f1(rouge_words(output), rouge_words(reference))
    assert fast == pytest.approx(row_rouge([output], [reference])[0]["rougeL"], abs=1e-12)
    assert rouge_l_f1([], ["a"]) == rouge_l_f1(["a"], []) == 0.0


def test_mean_over_rows_and_signature():
    rows = row_rouge(["a b", ""], ["a b", "c d"])
    assert mean_rouge(rows).values() == {"rouge1": 50.0, "rouge2": 50.0, "rougeL": 50.0, "rougeLsum": 50.0}
    assert mean_rouge(rows).signature.startswith(
        "types:rouge1|rouge2|rougeL|rougeLsum;f1;mean;stem:porter;rouge-score:"
    )


def test_rows_must_exist_and_belong_together():
    with pytest.raises(UsageError, match="no rows"):
        rouge([], [])
    with pytest.raises(UsageError, match="2 outputs"):
        rouge(["a", "b"], ["a"])


def test_who_scores_nothing_with_rouge_waits_for_none_of_its_libraries():
    code = (
        "import sys, rnnlm.assemble\n"
        "heavy = {'nltk', 'scipy', 'sklearn', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "from rnnlm.evaluation.rouge import rouge_words\n"
        "print(rouge_words('Cats ran.'), 'nltk' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["[]", "['cat', 'ran'] True"]
