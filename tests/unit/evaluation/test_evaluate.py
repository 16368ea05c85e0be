import json

import pytest

from rnnlm.data.ragged import Ragged
from rnnlm.errors import DataError
from rnnlm.evaluation.config import CacheConfig, DynamicConfig, EvaluateConfig
from rnnlm.evaluation.perplexity import score_documents
from rnnlm.evaluation.run import evaluate_pairs, evaluate_text

SETTINGS = EvaluateConfig(samples=3)


def test_text(text_generator, text_rows):
    seen = []
    texts = [row["text"] for row in text_rows]
    tokens = Ragged.from_rows(text_generator.tokenizer.encode_documents(texts))
    report = evaluate_text(
        text_generator,
        text_rows,
        tokens,
        settings=SETTINGS,
        train_tokens=tokens,
        train_rows=iter(text_rows),
        progress=lambda *event: seen.append(event),
    )
    total = score_documents(text_generator.model, tokens).sum()
    assert report.counts == {
        "nats": pytest.approx(total, rel=1e-6),
        "tokens": tokens.num_tokens,
        "bytes": sum(len(text.encode()) + 1 for text in texts),
    }
    assert report.figures["bits_per_byte"] == pytest.approx(total / 0.6931471805599453 / report.counts["bytes"])
    assert report.primary == "bits_per_byte"
    assert report.not_in_train.num_rows == len(texts) - 1
    assert [one.name for one in report.baselines] == ["unigram", "xz", "xz_after_train"]
    assert [(tag.name, tag.num_rows) for tag in report.tags] == [("even", 3)]
    assert len(report.samples) == 3
    assert all(sample.score is None and sample.confidence < 0 for sample in report.samples)
    assert report.decoding["max_length"] == 6
    assert set(report.seconds) == {"perplexity", "baselines", "samples"}
    assert seen[-1] == ("perplexity", tokens.num_tokens, tokens.num_tokens)
    json.dumps(report.plain(), allow_nan=False)


def test_adaptive_figures_stand_beside_the_plain_one(text_generator, text_rows):
    settings = EvaluateConfig(samples=0, cache=CacheConfig(size=20), dynamic=DynamicConfig())
    report = evaluate_text(text_generator, text_rows, settings=settings)
    plain = evaluate_text(text_generator, text_rows, settings=EvaluateConfig(samples=0))
    assert report.figures.keys() - plain.figures.keys() == {"perplexity_with_cache", "perplexity_dynamic"}
    assert report.figures["perplexity"] == plain.figures["perplexity"] != report.figures["perplexity_with_cache"]
    assert {"cache", "dynamic"} <= set(report.seconds)
    assert "test/perplexity_dynamic" in report.metrics()


def test_text_with_unknown_characters_has_no_bits_per_byte(text_generator, text_rows):
    rows = [{**text_rows[1], "text": "ÄÖ"}]
    report = evaluate_text(text_generator, rows, settings=EvaluateConfig(samples=0), split="gate")
    assert report.figures["bits_per_byte"] is None
    assert report.reasons["bits_per_byte"] == "2 of 3 tokens are <unk>"
    assert report.baselines == []
    assert report.samples == []
    assert report.not_in_train is None
    assert next(iter(report.metrics())) == "gate/perplexity"


def test_tokens_must_be_those_of_the_rows(text_generator, text_rows):
    with pytest.raises(DataError, match="6 documents, but tokens of 1"):
        evaluate_text(text_generator, text_rows, Ragged.from_rows([[1]]), settings=SETTINGS)


def test_only_the_first_rows(text_generator, text_rows):
    settings = EvaluateConfig(samples=0, max_rows=2)
    report = evaluate_text(text_generator, text_rows, settings=settings)
    alone = evaluate_text(text_generator, text_rows[:2], settings=EvaluateConfig(samples=0))
    assert (report.num_rows, report.num_rows_in_split) == (2, 6)
    assert report.figures == alone.figures
    assert report.not_in_train.num_rows == 1


def test_no_rows(text_generator, translator):
    with pytest.raises(DataError, match="no rows"):
        evaluate_text(text_generator, [], settings=SETTINGS)
    with pytest.raises(DataError, match="no rows"):
        evaluate_pairs(translator, [], settings=SETTINGS)


def test_translation(translator, pair_rows):
    seen = []
    report = evaluate_pairs(
        translator,
        pair_rows,
        settings=SETTINGS,
        train_rows=iter(pair_rows),
        progress=lambda *event: seen.append(event),
    )
    assert list(report.figures) == ["bleu", "chrf", "exact_match", "perplexity", "bits_per_byte"]
    assert report.figures["bits_per_byte"] is None
    assert "normalization" in report.reasons["bits_per_byte"]
    assert report.not_in_train.num_rows == 5
    assert set(report.not_in_train.figures) == set(report.figures)
    assert [one.name for one in report.baselines] == ["copied_source", "token_dictionary"]
    assert report.baselines[0].figures["bleu"] > 0
    assert [(tag.name, tag.num_rows) for tag in report.tags] == [("animal", 2), ("short", 2)]
    assert sum(one.num_rows for one in report.lengths) == 6
    assert [sample.id for sample in report.samples] == ["row:1", "row:3", "row:5"]
    outputs = translator([row["source"] for row in pair_rows])
    assert [sample.output for sample in report.samples] == outputs[1::2]
    assert report.counts["outputs_truncated"] + report.counts["outputs_empty"] >= 0
    assert report.decoding == {"method": "greedy", "max_length": 6, "min_length": 0}
    assert ("decode", 6, 6) in seen
    assert any(event[0] == "perplexity" for event in seen)
    json.dumps(report.plain(), allow_nan=False)


def test_translation_without_train_has_no_dictionary(translator, pair_rows):
    decode = translator.settings(method="greedy", max_length=2)
    report = evaluate_pairs(translator, pair_rows[:1], settings=EvaluateConfig(samples=0), decode=decode, split="gate")
    assert [one.name for one in report.baselines] == ["copied_source"]
    assert report.samples == []
    assert report.not_in_train is None
    assert report.decoding["max_length"] == 2
    assert report.split == "gate"


def test_summaries(summarizer, pair_rows):
    report = evaluate_pairs(summarizer, pair_rows, settings=SETTINGS)
    assert [one.name for one in report.baselines] == ["lead_1", "lead_3", "longest_3", "oracle_sentence"]
    assert report.primary == "rougeL"
    assert report.figures["rougeL"] is not None
    assert "test/rougeLsum" in report.metrics()
    assert all(0 <= sample.score <= 100 for sample in report.samples)
