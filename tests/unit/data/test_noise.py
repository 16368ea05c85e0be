"""Bigram Kneser-Ney noise: how often, with what, and that a window's noise depends on nothing but its key."""

import numpy as np
import pytest

from rnnlm.data.lm_batches import LmBatches
from rnnlm.data.noise import KneserNeyNoise
from rnnlm.data.ragged import Ragged
from rnnlm.text.special import EOS_ID, PAD_ID

SIZE = 12


@pytest.fixture
def tokens() -> Ragged:
    """5 is always followed by 6; 6 by 7, 8, 9 and 10, once each; each of these by `<eos>`, and that by 5 three times."""
    return Ragged.from_rows([[5, 6, after, EOS_ID] for after in (7, 8, 9, 10)])


def test_rates_and_replacements_are_those_of_the_paper(tokens: Ragged) -> None:
    noise = KneserNeyNoise.from_corpus(tokens, SIZE, 0.2, seed=0)
    assert noise.rates_V[5] == pytest.approx(0.2 * 1 / 4)
    assert noise.rates_V[6] == pytest.approx(0.2 * 4 / 4)
    assert noise.rates_V[7] == pytest.approx(0.2 * 1 / 1)
    assert noise.rates_V[EOS_ID] == pytest.approx(0.2 * 1 / 3)
    # Ten different bigrams: 5 6, 6 7, 6 8, 6 9, 6 10, four that end in `<eos>`, `<eos>` 5.
    chances = np.diff(noise.cumulative_V, prepend=0.0)
    assert chances[EOS_ID] == pytest.approx(0.4)
    assert chances[[5, 6, 7, 8, 9, 10]] == pytest.approx(np.full(6, 0.1))
    assert chances[PAD_ID] == 0.0


def test_positions_change_as_often_as_the_rates_say_and_padding_never(tokens: Ragged) -> None:
    noise = KneserNeyNoise.from_corpus(tokens, SIZE, 0.5, seed=0)
    inputs = np.tile(np.array([5, 6]), (50, 400))
    targets = np.full_like(inputs, 11)
    targets[:, -2:] = PAD_ID
    noisy, noisy_targets = inputs.copy(), targets.copy()
    noise.apply(3, np.arange(50), 50, noisy, noisy_targets)
    # 11 never occurs, so each changed position has another target.
    changed = noisy_targets != targets
    assert not changed[:, -2:].any()
    assert (noisy == inputs)[~changed].all()
    for token in (5, 6):
        share = changed[:, :-2][inputs[:, :-2] == token].mean()
        assert share == pytest.approx(noise.rates_V[token], abs=0.02)
    frequencies = np.bincount(noisy_targets[changed], minlength=SIZE) / changed.sum()
    assert frequencies == pytest.approx(np.diff(noise.cumulative_V, prepend=0.0), abs=0.02)


def test_the_noise_of_a_lane_does_not_depend_on_who_reads_it() -> None:
    rows = np.random.default_rng(0).integers(4, 60, (20, 30))
    tokens = Ragged.from_rows([[*row, EOS_ID] for row in rows.tolist()])

    def batch(
        step: int, rank: int = 0, world_size: int = 1, seed: int = 1, strength: float = 0.9
    ) -> tuple[np.ndarray, ...]:
        noise = KneserNeyNoise.from_corpus(tokens, 60, strength, seed)
        batches = LmBatches(tokens, lanes=6, bptt_length=7, seed=0, rank=rank, world_size=world_size, noise=noise)
        read = batches.batch(step)
        return read.input_BT, read.target_BT

    whole = batch(4)
    for mine, half in ((slice(0, 6, 2), batch(4, 0, 2)), (slice(1, 6, 2), batch(4, 1, 2))):
        for one, other in zip(whole, half, strict=True):
            assert (one[mine] == other).all()
    clean = batch(4, strength=0.0)
    assert all((one != other).any() for one, other in zip(whole, clean, strict=True))
    assert (whole[1] != batch(4, seed=2)[1]).any()
    places = [(batch(step)[1] != batch(step, strength=0.0)[1]).tolist() for step in (4, 5)]
    assert places[0] != places[1]


def test_a_corpus_of_one_token_has_nothing_to_become() -> None:
    noise = KneserNeyNoise.from_corpus(Ragged.from_rows([[EOS_ID]]), SIZE, 1.0, seed=0)
    inputs = np.full((1, 4), EOS_ID)
    targets = inputs.copy()
    noise.apply(0, np.arange(1), 1, inputs, targets)
    assert (inputs == EOS_ID).all()
    assert (targets == EOS_ID).all()
