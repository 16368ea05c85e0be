import math

import numpy as np
import pytest
import torch

from rnnlm.data.ragged import Ragged
from rnnlm.evaluation.perplexity import bytes_reason, perplexity, score_documents, score_targets
from rnnlm.text.tokenizer import Tokenizer


def test_figures_of_summed_nats():
    found = perplexity(20.0, 10, 8)
    assert found.perplexity == pytest.approx(math.e**2)
    assert found.bits_per_byte == pytest.approx(20.0 / math.log(2) / 8)
    assert found.reason is None


def test_bits_per_byte_are_null_with_the_reason():
    found = perplexity(20.0, 10, 8, "normalization changes the text")
    assert found.bits_per_byte is None
    assert found.reason == "normalization changes the text"
    assert perplexity(0.0, 0, 0).reason == "the text has no bytes"


def test_a_hopeless_model_has_infinite_perplexity():
    assert perplexity(1e9, 10, 8).perplexity == math.inf


def test_reasons():
    bpe = Tokenizer.train(["ab"], kind="bpe", vocab_size=260, min_frequency=1)
    char = Tokenizer.train(["ab"], kind="char", vocab_size=260, min_frequency=1)
    word = Tokenizer.train(["a b"], kind="word", vocab_size=260, min_frequency=1)
    known, unknown = (Ragged.from_rows(char.encode([text])) for text in ("ab", "xb"))
    assert bytes_reason(bpe, known, lossless_normalization=True) is None
    assert bytes_reason(char, known, lossless_normalization=True) is None
    assert bytes_reason(char, unknown, lossless_normalization=True) == "1 of 2 tokens are <unk>"
    assert bytes_reason(bpe, known, lossless_normalization=False) == "normalization changes the text"
    both = bytes_reason(word, Ragged.from_rows(word.encode(["a x"])), lossless_normalization=True)
    assert both == "the word vocabulary does not keep blanks; 1 of 2 tokens are <unk>"


def one_by_one(model, ids):
    """Nats of a document, a token at a time, by the softmax written out."""
    state, previous, total = model.init_state(1), 1, 0.0
    with torch.no_grad():
        for token in ids:
            logits_BV, state = model.step(torch.tensor([previous]), state)
            total -= float(torch.log_softmax(logits_BV.double(), dim=1)[0, int(token)])
            previous = token
    return total


@pytest.mark.parametrize("batch_tokens", [1, 150, 8_192])
def test_documents_are_read_with_their_state_carried(text_generator, text_rows, batch_tokens):
    texts = [row["text"] for row in text_rows]
    tokens = Ragged.from_rows(text_generator.tokenizer.encode_documents([*texts, "", "a long one " * 9]))
    done = []
    nats = score_documents(
        text_generator.model, tokens, batch_tokens=batch_tokens, done=lambda *counts: done.append(counts)
    )
    expected = [one_by_one(text_generator.model, tokens[row]) for row in range(len(tokens))]
    np.testing.assert_allclose(nats, expected, rtol=1e-5)
    assert done[-1] == (tokens.num_tokens, tokens.num_tokens)


@pytest.mark.parametrize("batch_tokens", [1, 8_192])
def test_targets_are_scored_after_the_true_ones(translator, batch_tokens):
    source = Ragged.from_rows([[5, 6, 7], [8], []])
    target = Ragged.from_rows([[9, 10], [], [11, 12, 13]])
    done = []
    nats = score_targets(
        translator.model, source, target, batch_tokens=batch_tokens, done=lambda *counts: done.append(counts)
    )
    model = translator.model
    for row in range(3):
        ids = torch.tensor([[*source[row].tolist(), 1]])
        with torch.no_grad():
            memory = model.encode(ids, torch.tensor([ids.shape[1]]))
            state, previous, total = model.init_state(memory), 1, 0.0
            for token in [*target[row].tolist(), 1]:
                log_probs_BV, state = model.step(torch.tensor([previous]), state, memory)
                total -= float(log_probs_BV[0, token])
                previous = token
        assert nats[row] == pytest.approx(total, rel=1e-4)
    assert done[-1] == (8, 8)
