import lzma
import math

import numpy as np
import pytest

from rnnlm.evaluation import baselines
from rnnlm.evaluation.baselines import (
    best_sentence,
    lead,
    longest,
    summary_baselines,
    text_baselines,
    translation_baselines,
    unigram_nats,
    xz_size,
)

IDS = np.array([1, 2, 2, 3], dtype=np.int32)


def test_unigram_by_hand():
    # Counts with one added: 0: 1, 1: 2, 2: 3, 3: 2, 4: 1, of 9.
    test = np.array([2, 4], dtype=np.int32)
    assert unigram_nats(IDS, test, 5) == pytest.approx(-math.log(3 / 9) - math.log(1 / 9))


def test_text_baselines_by_name():
    texts, train = ["low tide low tide"] * 20, ["low tide", "high tide"]
    num_bytes = sum(len(text) + 1 for text in texts)
    options = {"test_ids": IDS, "train_ids": IDS, "vocab_size": 5, "test_texts": texts}
    found = {one.name: one for one in text_baselines(num_bytes=num_bytes, train_texts=train, **options)}
    assert list(found) == ["unigram", "xz", "xz_after_train"]
    nats = unigram_nats(IDS, IDS, 5)
    assert found["unigram"].figures["perplexity"] == pytest.approx(math.exp(nats / 4))
    assert found["unigram"].figures["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes)
    data = b"".join(text.encode() + b"\n" for text in texts)
    size = len(lzma.compress(data, preset=9))
    assert found["xz"].figures["bits_per_byte"] == pytest.approx(8 * size / len(data))
    before = b"low tide\nhigh tide\n"
    after = len(lzma.compress(before + data, preset=9)) - len(lzma.compress(before, preset=9))
    assert found["xz_after_train"].figures["bits_per_byte"] == pytest.approx(8 * after / len(data))
    assert [one.role for one in found.values()] == ["trivial", "reference", "reference"]


def test_text_baselines_leave_out_what_cannot_be_had():
    options = {"test_ids": IDS, "vocab_size": 5, "test_texts": ["a"]}
    found = text_baselines(train_ids=IDS, num_bytes=None, train_texts=["a"], **options)
    assert [(one.name, list(one.figures)) for one in found] == [("unigram", ["perplexity"])]
    found = text_baselines(train_ids=None, num_bytes=2, train_texts=None, **options)
    assert [one.name for one in found] == ["xz"]
    options["test_texts"] = []
    assert text_baselines(train_ids=None, num_bytes=2, train_texts=None, **options) == []


def test_a_long_training_text_is_cut_at_its_front():
    found = baselines._xz_baselines(b"tide " * 50, ["tide " * 100], max_train_bytes=64)
    assert found[1].about == "`xz -9` after the last 64 bytes of the training text"


@pytest.mark.parametrize("data", [b"", b"abc" * 2_000, bytes(range(256)) * 40])
def test_size_is_that_of_xz_dash_nine(data):
    assert xz_size(data) == len(lzma.compress(data, preset=9))


def score(outputs):
    return {"bleu": float(len(outputs[0]))}


def test_translation_baselines():
    found = translation_baselines(["rot"], score, [("rot", "red!"), ("rot", "red!")])
    assert [(one.name, one.role, one.figures) for one in found] == [
        ("copied_source", "trivial", {"bleu": 3.0}),
        ("token_dictionary", "trivial", {"bleu": 3.0}),
    ]
    assert "1 entries" in found[1].about
    assert [one.name for one in translation_baselines(["rot"], score, None)] == ["copied_source"]


def test_summary_baselines():
    sources = ["Ann: one\nBen: two two two\nAnn: three three\nBen: four four four four", ""]
    kept = []
    found = summary_baselines(sources, ["two, two!", "x"], lambda texts: kept.append(list(texts)) or {})
    assert [(one.name, one.role) for one in found] == [
        ("lead_1", "trivial"),
        ("lead_3", "trivial"),
        ("longest_3", "trivial"),
        ("oracle_sentence", "oracle"),
    ]
    assert [texts[0] for texts in kept] == [
        "Ann: one",
        "Ann: one\nBen: two two two\nAnn: three three",
        "Ben: two two two\nAnn: three three\nBen: four four four four",
        "Ben: two two two",
    ]
    assert [texts[1] for texts in kept] == ["", "", "", ""]


def test_ties_go_to_the_earlier_sentence():
    assert lead(["a", "b"], 3) == "a\nb"
    assert longest(["aa", "bb", "c", "dd"], 2) == "aa\nbb"
    assert best_sentence(["a b", "b a"], "c") == "a b"
