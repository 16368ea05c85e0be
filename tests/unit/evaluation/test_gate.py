import math

import pytest

from rnnlm.errors import UsageError
from rnnlm.evaluation.baselines import Baseline
from rnnlm.evaluation.gate import decide, is_better, primary_metric


def baseline(name, role="trivial", **figures):
    return Baseline(name, role, "", figures)


COPY = baseline("copied_source", bleu=0.5)
DICTIONARY = baseline("token_dictionary", bleu=14.25)
UNIGRAM = baseline("unigram", bits_per_byte=4.5, perplexity=600.0)


def test_first_version_that_beats_every_trivial_baseline():
    decision = decide("translate", {"bleu": 20.125}, None, [COPY, DICTIONARY])
    assert decision.promote
    assert decision.metric == "bleu"
    assert decision.reason == (
        "Promoted as the first version: bleu 20.125 beats every trivial baseline "
        "(copied_source 0.5, token_dictionary 14.25)."
    )


def test_first_version_that_one_trivial_baseline_equals():
    decision = decide("translate", {"bleu": 14.25}, None, [COPY, DICTIONARY])
    assert not decision.promote
    assert decision.reason.endswith("(unbeaten: token_dictionary 14.25).")


def test_oracles_and_references_do_not_stand_in_the_way():
    rivals = [baseline("lead_3", rougeL=20.0), baseline("oracle_sentence", "oracle", rougeL=40.0)]
    assert decide("summarize", {"rougeL": 25.0}, None, rivals).promote
    rivals = [UNIGRAM, baseline("xz_after_train", "reference", bits_per_byte=1.0)]
    assert decide("text", {"bits_per_byte": 2.0, "perplexity": 90.0}, None, rivals).promote


def test_first_version_without_baselines_is_not_promoted():
    decision = decide("translate", {"bleu": 50.0}, None, [])
    assert not decision.promote
    assert "no trivial baseline" in decision.reason


def test_text_falls_back_to_perplexity():
    decision = decide("text", {"bits_per_byte": None, "perplexity": 100.0}, None, [UNIGRAM])
    assert (decision.promote, decision.metric) == (True, "perplexity")


@pytest.mark.parametrize(("new", "promote"), [(1.99, True), (2.0, False), (2.01, False), (math.nan, False)])
def test_a_later_version_must_be_strictly_better(new, promote):
    decision = decide("text", {"bits_per_byte": new}, {"bits_per_byte": 2.0}, [UNIGRAM])
    assert decision.promote is promote
    assert "the champion's 2 (lower is better)." in decision.reason


def test_a_later_version_does_not_have_to_beat_baselines_again():
    decision = decide("translate", {"bleu": 3.0}, {"bleu": 2.0}, [DICTIONARY])
    assert decision.reason == "Promoted: bleu 3 beats the champion's 2 (higher is better)."


def test_perplexities_of_two_vocabularies_are_not_compared():
    sides = {"perplexity": 50.0}, {"perplexity": 90.0}
    assert decide("text", *sides, [], same_tokenizer=True).promote
    decision = decide("text", *sides, [], same_tokenizer=False)
    assert not decision.promote
    assert "different tokenizers" in decision.reason
    sides = {"bits_per_byte": 1.0}, {"bits_per_byte": 2.0}
    assert decide("text", *sides, [], same_tokenizer=False).promote


def test_anything_is_better_than_a_figure_that_is_no_number():
    assert is_better("bleu", 1.0, math.nan)
    assert not is_better("bleu", math.nan, 1.0)
    assert not is_better("bleu", math.nan, math.nan)


def test_mistakes():
    with pytest.raises(UsageError, match="task should be one of"):
        primary_metric("speech", {})
    with pytest.raises(UsageError, match="lack bits_per_byte and perplexity"):
        decide("text", {"bleu": 1.0}, None, [])
