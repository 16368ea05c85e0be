"""Beam search over real networks with random weights, against the enumeration of every sequence by teacher forcing."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from rnnlm.decoding.beam import beam_search
from rnnlm.decoding.build import build_decoder
from rnnlm.decoding.decoder import Decoder, Start
from rnnlm.decoding.sampling import greedy, sample
from rnnlm.models.build import build_model
from rnnlm.models.config import LanguageModelConfig, Seq2SeqConfig

VOCAB_SIZE, MAX_LENGTH, NUM_ROWS = 5, 4, 6
SEQ2SEQ = {"embedding_size": 8, "hidden_size": 8, "decoder_layers": 2}
CONFIGS = {
    "lm": LanguageModelConfig(embedding_size=8, hidden_size=8),
    "lm-elman": LanguageModelConfig(cell="elman", embedding_size=8, hidden_size=8, tie_embeddings=False),
    "dot-copy": Seq2SeqConfig(**SEQ2SEQ),
    "additive": Seq2SeqConfig(**SEQ2SEQ, attention="additive", copy_source=False, cell="elman"),
    "no-attention": Seq2SeqConfig(**SEQ2SEQ, attention="none", copy_source=False),
}


def decoder_of(name: str) -> Decoder:
    torch.manual_seed(7)
    model = build_model(CONFIGS[name], VOCAB_SIZE).eval()
    for parameter in model.parameters():
        parameter.data.mul_(2.5)
    return build_decoder(model, pad_id=0, eos_id=1, vocab_size=VOCAB_SIZE)


def inputs() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(2, VOCAB_SIZE, size=length) for length in (1, 4, 2, 4, 7, 3)]


def sequences() -> list[tuple[int, ...]]:
    """All sequences over the vocabulary without padding that end in `<eos>`, or have the greatest length."""
    words = range(2, VOCAB_SIZE)
    ended = [(*body, 1) for length in range(MAX_LENGTH) for body in itertools.product(words, repeat=length)]
    return ended + list(itertools.product(words, repeat=MAX_LENGTH))


@torch.inference_mode()
def log_probs_of(decoder: Decoder, source: np.ndarray) -> list[float]:
    """log p of every sequence, all of them fed as one batch."""
    every = sequences()
    padded = torch.tensor([[*sequence, *[1] * (MAX_LENGTH - len(sequence))] for sequence in every])
    ids, state, memory = decoder.start([source] * len(every))
    total = torch.zeros(len(every), dtype=torch.float64)
    for step in range(MAX_LENGTH):
        next_token, state = decoder.step(ids, state, memory)
        log_probs = next_token.log_probs()
        real = torch.tensor([step < len(sequence) for sequence in every])
        total += torch.where(real, log_probs.gather(1, padded[:, step, None])[:, 0], torch.zeros(())).double()
        ids = padded[:, step]
    return total.tolist()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_sequences(name: str, penalty: float) -> None:
    decoder = decoder_of(name)
    rows = inputs()
    options = {"length_penalty": penalty, "max_length": MAX_LENGTH}
    wide = beam_search(decoder, decoder.start(rows), beam_size=VOCAB_SIZE ** (MAX_LENGTH - 1), **options)
    narrow = [beam_search(decoder, decoder.start(rows), beam_size=size, **options) for size in (1, 2, 3, 6)]
    for row, source in enumerate(rows):
        totals = log_probs_of(decoder, source)
        scores = [total / len(sequence) ** penalty for total, sequence in zip(totals, sequences(), strict=True)]
        best = sequences()[int(np.argmax(scores))]
        assert (*wide.tokens[row].tolist(), *[1] * wide.ended[row]) == best
        assert wide.log_probs[row] == pytest.approx(totals[sequences().index(best)], abs=1e-5)
        for made in narrow:
            found = (*made.tokens[row].tolist(), *[1] * made.ended[row])
            assert made.log_probs[row] == pytest.approx(totals[sequences().index(found)], abs=1e-5)
            assert made.log_probs[row] / len(found) ** penalty <= max(scores) + 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_are_the_same_alone_and_beams_of_one_are_greedy(name: str) -> None:
    decoder = decoder_of(name)
    rows = inputs()
    beams = beam_search(decoder, decoder.start(rows), beam_size=3, max_length=12)
    one = beam_search(decoder, decoder.start(rows), beam_size=1, max_length=12)
    by_steps = greedy(decoder, decoder.start(rows), max_length=12)
    drawn = sample(decoder, decoder.start(rows), seed=3, keys=range(NUM_ROWS), max_length=12)
    assert [row.tolist() for row in one.tokens] == [row.tolist() for row in by_steps.tokens]
    assert one.log_probs == pytest.approx(by_steps.log_probs, abs=1e-9)
    for place, row in enumerate(rows):
        alone: Start = decoder.start([row])
        assert (
            beam_search(decoder, alone, beam_size=3, max_length=12).tokens[0].tolist() == beams.tokens[place].tolist()
        )
        assert greedy(decoder, alone, max_length=12).tokens[0].tolist() == by_steps.tokens[place].tolist()
        draw = sample(decoder, alone, seed=3, keys=[place], max_length=12)
        assert draw.tokens[0].tolist() == drawn.tokens[place].tolist()


def test_a_long_prompt_is_read_like_a_short_one() -> None:
    decoder = decoder_of("lm")
    prompt = np.random.default_rng(1).integers(2, VOCAB_SIZE, size=600)
    with torch.inference_mode():
        ids, state, _ = decoder.start([prompt])
        log_probs = decoder.step(ids, state, None)[0].log_probs()
        _, state, _ = decoder.start([prompt[:0]])
        step_log_probs: Tensor = torch.zeros(0)
        for token in [1, *prompt.tolist()]:
            next_token, state = decoder.step(torch.tensor([token]), state, None)
            step_log_probs = next_token.log_probs()
    torch.testing.assert_close(log_probs, step_log_probs, atol=1e-4, rtol=1e-4)
