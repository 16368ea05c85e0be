import pytest

from rnnlm.errors import UsageError
from rnnlm.evaluation.quality import exact_match, measure

REFERENCES = ["the cat sat on the mat", "a dog barked at night", "rain fell all day"]
OUTPUTS = ["the cat sat on the mat", "a dog barked", "snow"]


def test_translations():
    quality = measure("translate", OUTPUTS, REFERENCES, tokenize="none", lowercase=True)
    figures = quality.figures()
    assert set(figures) == {"bleu", "chrf", "exact_match"}
    assert figures["exact_match"] == pytest.approx(1 / 3)
    assert quality.figures([0])["bleu"] == pytest.approx(100.0)
    assert quality.brief([0]) == {"exact_match": 1.0, "bleu": pytest.approx(100.0)}
    assert quality.row(0) == pytest.approx(100.0)
    assert quality.row(0) > quality.row(1) > quality.row(2)
    assert "tok:none" in quality.signatures()["bleu"]
    assert "case:lc" in quality.signatures()["chrf"]


def test_summaries():
    quality = measure("summarize", OUTPUTS, REFERENCES)
    figures = quality.figures()
    assert set(figures) == {"rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match"}
    assert figures["rougeL"] == pytest.approx(sum(quality.row(row) for row in range(3)) / 3)
    assert quality.brief([0]) == {"exact_match": 1.0, "rouge1": 100.0, "rouge2": 100.0, "rougeL": 100.0}
    assert set(quality.signatures()) == {"rouge1", "rouge2", "rougeL", "rougeLsum"}


def test_blanks_do_not_spoil_an_exact_match():
    assert exact_match([" a  b\n", "c"], ["a b", "C"]) == 0.5
    assert exact_match([], []) == 0.0


def test_mistakes():
    with pytest.raises(UsageError, match="'translate' or 'summarize'"):
        measure("text", OUTPUTS, REFERENCES)
    with pytest.raises(UsageError, match="no rows"):
        measure("translate", [], [])
