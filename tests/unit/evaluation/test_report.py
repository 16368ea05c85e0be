import json
import math

import pytest

from rnnlm.evaluation.baselines import Baseline
from rnnlm.evaluation.report import LengthBin, Report, Sample, Subset, metric_name


@pytest.fixture
def report():
    return Report(
        task="translate",
        split="test",
        num_rows=100,
        num_rows_in_split=250,
        figures={"bleu": 31.4159, "perplexity": 5.5, "bits_per_byte": None},
        reasons={"bits_per_byte": "normalization changes the text"},
        signatures={"bleu": "nrefs:1|case:mixed|tok:13a"},
        counts={"tokens": 1234.0},
        not_in_train=Subset("not in train", 90, {"bleu": 30.0, "perplexity": 6.0, "bits_per_byte": None}),
        baselines=[Baseline("copied_source", "trivial", "as it stands", {"bleu": 0.5})],
        tags=[Subset("question", 12, {"exact_match": 0.25, "bleu": 20.0})],
        lengths=[LengthBin(1, 1, 40, 50.0), LengthBin(2, 9, 60, 25.0)],
        samples=[Sample("f:1", "ein | Haus", "a\nhouse", "<b> house " + "x" * 400, 50.0, -0.5, "question")],
        decoding={"method": "beam", "beam_size": 4},
        seconds={"decode": 1.25},
    )


def test_flat_metrics_have_the_keys_of_the_contract(report):
    assert report.metrics() == {
        "test/bleu": 31.4159,
        "test/perplexity": 5.5,
        "test_not_in_train/bleu": 30.0,
        "test_not_in_train/perplexity": 6.0,
        "baseline/copied_source/bleu": 0.5,
        "time/decode_s": 1.25,
    }


def test_the_primary_metric_is_the_first_that_is_given(report):
    assert report.primary == "bleu"
    text = Report("text", "test", 1, 1, {"perplexity": 3.0, "bits_per_byte": None})
    assert text.primary == "perplexity"


def test_notes_say_what_a_reader_must_know(report):
    assert report.notes == [
        "Bits per byte is not given: normalization changes the text.",
        "Only the first 100 of 250 rows were scored.",
        "10 of the rows also stand in train; figures without them are given beside.",
    ]


def test_plain_is_json_and_has_everything(report):
    plain = json.loads(json.dumps(report.plain(), allow_nan=False))
    assert plain["primary"] == "bleu"
    assert plain["figures"]["bits_per_byte"] is None
    assert plain["metrics"]["test/bleu"] == 31.4159
    assert plain["baselines"][0]["role"] == "trivial"
    assert plain["samples"][0]["confidence"] == -0.5
    assert plain["decoding"]["beam_size"] == 4


def test_numbers_that_json_does_not_know_become_null():
    report = Report("text", "test", 1, 1, {"perplexity": math.inf}, counts={"nats": math.nan})
    plain = json.loads(json.dumps(report.plain(), allow_nan=False))
    assert plain["figures"]["perplexity"] is None
    assert plain["counts"]["nats"] is None
    assert plain["metrics"]["test/perplexity"] is None


def test_sample_rows(report):
    row = report.sample_rows()[0]
    assert list(row) == ["id", "source", "reference", "output", "score", "confidence", "tags"]


def test_markdown_is_for_people(report):
    text = report.markdown()
    assert text.startswith("# Evaluation on test\n\nTask translate, 100 rows.")
    assert "| BLEU | 31.42 | 30 | nrefs:1\\|case:mixed\\|tok:13a |" in text
    assert "| Bits per byte | – | – |  |" in text
    assert "| copied_source (trivial) | 0.5 | as it stands |" in text
    assert "Higher is better." in text
    assert "| question | 12 | 0.25 | 20 |" in text
    assert "| 1 | 40 | 50 |" in text
    assert "| 2–9 | 60 | 25 |" in text
    assert "| ein \\| Haus | a house | &lt;b> house xx" in text
    assert "x…" in text
    assert "- tokens: 1,234\n- decode.method: beam\n- decode.beam_size: 4\n- decode: 1.2 s" in text


def test_markdown_of_a_bare_report():
    text = Report("text", "valid", 1, 1, {"perplexity": 3.25}).markdown()
    assert text == (
        "# Evaluation on valid\n\nTask text, 1 rows.\n\n"
        "| Figure | All rows | How |\n| --- | --- | --- |\n| Perplexity | 3.25 |  |\n"
    )


def test_names():
    assert metric_name("rougeLsum") == "ROUGE-Lsum"
    assert metric_name("else") == "else"
