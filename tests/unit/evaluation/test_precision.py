"""The gate of precisions below fp32: what is allowed, and that it is measured as text is decoded."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from rnnlm.data.ragged import Ragged
from rnnlm.decoding.build import resolve
from rnnlm.decoding.config import DecodeConfig, PrecisionCheck
from rnnlm.decoding.generator import Generator, Task
from rnnlm.errors import UsageError
from rnnlm.evaluation import precision
from rnnlm.evaluation.config import EvaluateConfig
from rnnlm.evaluation.perplexity import score_documents
from rnnlm.models.build import build_model
from rnnlm.models.config import LanguageModelConfig, Seq2SeqConfig
from rnnlm.nn.products import supports
from rnnlm.text.tokenizer import Tokenizer

TEXTS = ["grey clouds move over the hill", "nobody saw the fox at night", "ten boats left the harbour early"]


def generator_of(task: Task, **options: Any) -> Generator:
    tokenizer = Tokenizer.train(TEXTS, kind="bpe", vocab_size=290, min_frequency=1)
    config: Any = LanguageModelConfig if task == "text" else Seq2SeqConfig
    config = config(embedding_size=8, hidden_size=8, **options)
    torch.manual_seed(0)
    decode = DecodeConfig(beam_size=2, max_length=8)
    return Generator(build_model(config, tokenizer.vocab_size), config, tokenizer, task=task, decode=decode)


def check(name: Any, allowed: bool) -> PrecisionCheck:
    return PrecisionCheck(precision=name, metric="bleu", value=30, fp32_value=30, rows=5, allowed=allowed)


@pytest.mark.parametrize(
    ("metric", "value", "fp32", "allowed"),
    [
        ("bleu", 29.71, 30.0, True),
        ("bleu", 29.69, 30.0, False),
        ("bleu", 31.0, 30.0, True),
        ("rougeL", 39.91, 40.0, True),
        ("rougeL", 39.89, 40.0, False),
        ("perplexity", 100.09, 100.0, True),
        ("perplexity", 100.11, 100.0, False),
        ("perplexity", math.nan, 100.0, False),
        ("bleu", math.nan, 30.0, False),
    ],
)
def test_so_much_may_be_lost(metric: str, value: float, fp32: float, allowed: bool) -> None:
    assert precision.is_allowed(metric, value, fp32) is allowed


def test_auto_takes_the_fastest_that_is_allowed_and_there(monkeypatch: pytest.MonkeyPatch) -> None:
    auto = DecodeConfig()
    monkeypatch.setattr("rnnlm.decoding.build.supports", lambda name: True)
    monkeypatch.setattr("rnnlm.decoding.build.has_fast_bf16", lambda: True)
    assert resolve(auto, []) == "fp32"
    assert resolve(auto, [check("bf16", True), check("int8", True)]) == "int8"
    assert resolve(auto, [check("bf16", True), check("int8", False)]) == "bf16"
    assert resolve(auto, [check("bf16", False), check("int8", False)]) == "fp32"
    assert resolve(DecodeConfig(precision="int8"), [check("int8", False)]) == "int8"
    monkeypatch.setattr("rnnlm.decoding.build.supports", lambda name: name != "int8")
    assert resolve(auto, [check("bf16", True), check("int8", True)]) == "bf16"
    monkeypatch.setattr("rnnlm.decoding.build.has_fast_bf16", lambda: False)
    assert resolve(auto, [check("bf16", True), check("int8", True)]) == "fp32"
    assert resolve(DecodeConfig(precision="bf16"), []) == "bf16"
    with pytest.raises(UsageError, match="no instructions for int8"):
        resolve(DecodeConfig(precision="int8"), [check("int8", True)])


def test_only_a_precision_that_matters_is_part_of_a_digest() -> None:
    plain = DecodeConfig(precision="fp32").effective()
    assert "precision" not in plain
    assert DecodeConfig().effective() == plain
    assert DecodeConfig(precision="int8").effective() == plain | {"precision": "int8"}


@pytest.mark.skipif(not supports("int8"), reason="this CPU has no int8")
@pytest.mark.parametrize(("task", "metric"), [("translate", "bleu"), ("summarize", "rougeL")])
def test_pairs_are_decoded_in_every_precision(task: Task, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "MAX_PAIRS", 4)
    rows = [{"id": str(number), "source": text, "target": text} for number, text in enumerate(TEXTS * 2)]
    found = precision.check_pairs(generator_of(task), rows, EvaluateConfig(), seed=1)
    assert [(each.precision, each.metric, each.rows) for each in found][:1] == [("int8", metric, 4)]
    assert all(each.allowed == precision.is_allowed(metric, each.value, each.fp32_value) for each in found)


def test_text_is_predicted_as_evaluation_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "WINDOW", 16)
    generator = generator_of("text")
    tokens = np.random.default_rng(0).integers(2, 290, 100)
    nats = precision.forced_nats(generator.decoder(), torch.from_numpy(tokens[:96].reshape(6, 16)))
    expected = score_documents(generator.model, Ragged.from_rows(list(tokens[:96].reshape(6, 16))))
    assert nats == pytest.approx(expected.sum(), abs=1e-3)
    for each in precision.check_text(generator, tokens, seed=0):
        assert each.rows == 6
        assert each.fp32_value == pytest.approx(math.exp(nats / 96), rel=1e-6)
        assert each.value == pytest.approx(each.fp32_value, rel=0.01)


def test_without_rows_or_for_another_model_nothing_is_measured() -> None:
    assert precision.check_pairs(generator_of("translate"), [], EvaluateConfig(), seed=0) == []
    assert precision.check_text(generator_of("text"), np.zeros(0, np.int64), seed=0) == []
    assert precision.check_text(generator_of("text", cell="gru"), np.arange(2, 90), seed=0) == []
