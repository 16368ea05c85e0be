"""Text in, text out: arguments, batches, streams and odd inputs."""

import itertools
from typing import Any

import pytest
import torch

from rnnlm.decoding.config import DecodeConfig
from rnnlm.decoding.generator import Generator
from rnnlm.errors import ConfigError, UsageError
from rnnlm.models.build import build_model
from rnnlm.models.config import LanguageModelConfig, Seq2SeqConfig
from rnnlm.text.config import NormalizeConfig
from rnnlm.text.tokenizer import Tokenizer

TEXTS = ["the small cat sat on a red mat", "a dog ran over the wet grass", "two birds sing é ü 漢字 at noon"] * 4
DEFAULTS = DecodeConfig(method="greedy", max_length=12)


def make(task: Any, kind: str = "bpe", **options: Any) -> Generator:
    tokenizer = Tokenizer.train(TEXTS, kind=kind, vocab_size=330, min_frequency=1)
    config: LanguageModelConfig | Seq2SeqConfig = Seq2SeqConfig(embedding_size=8, hidden_size=8)
    if task == "text":
        config = LanguageModelConfig(embedding_size=8, hidden_size=16)
    torch.manual_seed(3)
    model = build_model(config, tokenizer.vocab_size)
    for parameter in model.parameters():
        parameter.data.mul_(2.0)
    return Generator(model, config, tokenizer, task=task, decode=options.pop("decode", DEFAULTS), **options)


@pytest.fixture(scope="module")
def writer() -> Generator:
    return make("text")


@pytest.fixture(scope="module")
def translator() -> Generator:
    return make("translate", normalize=NormalizeConfig(whitespace="collapse"))


def test_a_string_gives_a_string_and_a_list_a_list(writer: Generator) -> None:
    one = writer("the small")
    assert isinstance(one, str)
    assert writer(["the small"]) == [one]
    assert writer([]) == []
    assert writer(("the small", "a dog")) == writer(["the small", "a dog"])
    assert not writer.model.training
    assert "text" in repr(writer)


def test_the_prompt_is_not_part_of_the_result_and_decides_it(writer: Generator) -> None:
    outputs = writer.generate(["the", "a dog ran", ""], writer.settings(min_length=5))
    assert len({output.text for output in outputs}) > 1
    assert all(output.status == "ok" and output.score is not None and output.score < 0 for output in outputs)


@pytest.mark.parametrize("options", [{}, {"beam_size": 3}, {"method": "sample", "top_p": 0.9, "seed": 5}])
@pytest.mark.parametrize("task", ["text", "translate"])
def test_batches_change_nothing(task: str, options: dict[str, Any]) -> None:
    generator = make(task)
    texts = [
        " ".join(words) for words in itertools.product(["the", "a", "two"], ["cat", "small dog", "red mat sat on"])
    ]
    together = generator.generate(texts, generator.settings(**options))
    assert len({output.text for output in together}) > 3
    one_by_one = generator.generate(texts, generator.settings(**options, batch_tokens=1))
    backwards = generator.generate(texts[::-1], generator.settings(**options, batch_tokens=100))[::-1]
    for other in (one_by_one, backwards):
        assert [output.text for output in other] == [output.text for output in together]
        assert [output.score for output in other] == pytest.approx([output.score for output in together], abs=1e-5)
    alone = [generator.generate([text], generator.settings(**options))[0].text for text in texts]
    assert alone == [output.text for output in together]


def test_repeated_prompts_get_other_samples_and_keys_pin_them(writer: Generator) -> None:
    options = {"method": "sample", "min_length": 8}
    samples = writer(["the"] * 6, **options)
    assert len(set(samples)) > 3
    assert writer(["the"] * 6, **options) == samples
    assert writer("the", **options) == samples[0]
    assert writer(["the"] * 6, **options, seed=1) != samples
    settings = writer.settings(**options)
    rows = [output.text for output in writer.generate(["the"] * 3, settings, keys=["x", "y", "x"])]
    assert rows[0] == rows[2] != rows[1]


def test_options_choose_their_method(writer: Generator) -> None:
    assert writer.settings().method == "greedy"
    assert writer.settings(beam_size=4).method == "beam"
    assert writer.settings(temperature=0.5, top_k=3).method == "sample"
    assert writer.settings(temperature=None, beam_size=None) == DEFAULTS
    assert writer.settings(max_length=3).max_length == 3
    with pytest.raises(UsageError, match="temperature: has no effect with method 'beam'"):
        writer.settings(temperature=0.5, method="beam")
    with pytest.raises(UsageError, match="no effect"):
        writer.settings(temperature=0.5, beam_size=3)
    with pytest.raises(ConfigError, match="did you mean 'beam_size'"):
        writer("a", beam_sise=3)
    with pytest.raises(ConfigError, match=r"temperature: .* \(got 0\)"):
        writer("a", temperature=0)
    with pytest.raises(ConfigError, match="method"):
        writer("a", method="best", beam_size=2)


@pytest.mark.parametrize("wrong", [None, 3, b"bytes", ["a", None], [3.5], [["a"]]])
def test_what_is_no_text_is_refused(writer: Generator, wrong: Any) -> None:
    with pytest.raises(UsageError, match="should be a string"):
        writer(wrong)


def test_blank_sources_give_nothing_and_blank_prompts_begin_anew(translator: Generator, writer: Generator) -> None:
    outputs = translator.generate(["", "the cat", " \n\t ", "a"])
    assert [output.status for output in outputs] == ["empty", "ok", "empty", "ok"]
    assert (outputs[0].text, outputs[0].score, outputs[0].num_tokens) == ("", None, 0)
    assert translator("the cat") == outputs[1].text
    assert translator.first_log_probs("  ") is None
    assert list(translator.stream(" ")) == []
    assert writer.generate([""])[0].status == "ok"


@pytest.mark.parametrize("odd", ["\0", "\ud800 lone", "漢" * 500, "a\r\nb\u2028c", "<eos> <pad>", " "])
def test_odd_text_never_fails(writer: Generator, translator: Generator, odd: str) -> None:
    for generator in (writer, translator, make("text", kind="word"), make("text", kind="char")):
        assert generator.generate([odd, "the cat"])[1].text == generator("the cat")


def test_scores_and_counts(translator: Generator) -> None:
    ended = translator.generate(TEXTS[:3], translator.settings(method="beam", max_length=60))
    cut = translator.generate(TEXTS[:3], translator.settings(max_length=2, min_length=2))
    assert all(output.truncated and output.num_tokens == 2 for output in cut)
    first = translator.first_log_probs(TEXTS[0])
    assert first is not None
    assert first.shape == (translator.tokenizer.vocab_size,)
    assert float(torch.from_numpy(first).exp().sum()) == pytest.approx(1.0, abs=1e-4)
    assert all(output.num_tokens >= 1 for output in ended)


@pytest.mark.parametrize("kind", ["bpe", "word", "char"])
@pytest.mark.parametrize("options", [{"method": "greedy"}, {"temperature": 0.7, "seed": 4}])
def test_a_stream_gives_what_a_call_gives(kind: str, options: dict[str, Any]) -> None:
    generator = make("text", kind=kind)
    for prompt in ("the small", "", "two birds sing é"):
        pieces = list(generator.stream(prompt, **options, max_length=40, min_length=20))
        assert "".join(pieces) == generator(prompt, **options, max_length=40, min_length=20)
        assert len(pieces) > 5


def test_a_beam_cannot_be_streamed(writer: Generator) -> None:
    with pytest.raises(UsageError, match="cannot be streamed"):
        next(writer.stream("the", beam_size=3))
