import pytest

from rnnlm.errors import UsageError
from rnnlm.evaluation.bleu import bleu, chrf, one_line, sentence_chrf

REFERENCES = ["The cat sat on the mat.", "A dog barked at night."]


def test_a_perfect_output_scores_one_hundred():
    assert bleu(REFERENCES, REFERENCES).value == pytest.approx(100.0)
    assert chrf(REFERENCES, REFERENCES).value == pytest.approx(100.0)


def test_signature_names_case_and_tokenization():
    assert "case:lc|" in bleu(REFERENCES, REFERENCES, tokenize="none", lowercase=True).signature
    assert "tok:none|" in bleu(REFERENCES, REFERENCES, tokenize="none", lowercase=True).signature
    assert "case:mixed|" in bleu(REFERENCES, REFERENCES).signature
    assert "tok:13a|" in bleu(REFERENCES, REFERENCES).signature
    assert chrf(REFERENCES, REFERENCES).signature.startswith("nrefs:1|case:mixed|eff:yes|nc:6")


def test_case_counts_unless_told_otherwise():
    shouted = [text.upper() for text in REFERENCES]
    assert bleu(shouted, REFERENCES).value < 10
    assert bleu(shouted, REFERENCES, lowercase=True).value == pytest.approx(100.0)
    assert chrf(shouted, REFERENCES, lowercase=True).value == pytest.approx(100.0)
    assert sentence_chrf(shouted[0], REFERENCES[0], lowercase=True) == pytest.approx(100.0)


def test_line_breaks_inside_a_row_are_blanks():
    assert one_line("a\r\nb\nc\rd") == "a b c d"
    assert bleu([text.replace(" ", "\n") for text in REFERENCES], REFERENCES, tokenize="none").value == pytest.approx(
        100
    )


@pytest.mark.parametrize("score", [bleu, chrf])
def test_rows_must_exist_and_belong_together(score):
    with pytest.raises(UsageError, match="no rows"):
        score([], [])
    with pytest.raises(UsageError, match="1 outputs cannot be scored against 2 references"):
        score(["one"], ["one", "two"])


def test_empty_outputs_are_scored():
    assert bleu(["", ""], REFERENCES).value == 0.0
    assert chrf(["", ""], REFERENCES).value == 0.0
