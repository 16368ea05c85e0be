"""Greedy decoding and sampling: the right distribution, and rows that do not depend on their batch."""

from typing import Any

import numpy as np
import pytest
import torch

from rnnlm.decoding.sampling import draw, greedy, row_key, sample, uniforms

Table = Any


def rows(*ids: int) -> list[np.ndarray]:
    return [np.array([row]) for row in ids]


def test_uniforms_are_a_pure_function_and_look_uniform() -> None:
    keys = np.arange(20_000, dtype=np.uint64)
    numbers = uniforms(3, keys, 5)
    assert np.array_equal(numbers[7:9], uniforms(3, keys[7:9], 5))
    assert 0 <= numbers.min() <= numbers.max() < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 1_000) ** 2 / 1_000).sum() < 45  # chi-square, 19 degrees of freedom, p < 0.001
    for other in (uniforms(4, keys, 5), uniforms(3, keys, 6)):
        assert abs(np.corrcoef(numbers, other)[0, 1]) < 0.03


def test_row_keys_differ_and_accept_any_text() -> None:
    assert row_key("a") == row_key("a") != row_key("b")
    assert 0 <= row_key("\ud800") < 2**64


def test_draw_never_picks_a_weight_of_zero() -> None:
    weights = torch.tensor([[0.0, 1.0, 0.0, 2.0, 0.0]], dtype=torch.float64).expand(4, -1)
    chosen = draw(weights, torch.tensor([0.0, 0.33, 0.34, 1.0], dtype=torch.float64))
    assert chosen.tolist() == [1, 1, 3, 3]


@pytest.mark.parametrize(
    "cuts", [{}, {"top_k": 3}, {"top_p": 0.7}, {"temperature": 0.6}, {"temperature": 1.7, "top_k": 4, "top_p": 0.9}]
)
def test_first_tokens_have_the_distribution_asked_for(table_decoder: Table, cuts: dict[str, Any]) -> None:
    decoder = table_decoder(vocab_size=7, seed=2)
    draws = 20_000
    start = decoder.start(rows(*[4] * draws))
    made = sample(decoder, start, seed=1, keys=range(draws), max_length=1, **cuts)
    tokens = np.array([row[0] if len(row) else 1 for row in made.tokens])
    scores = decoder.table[decoder.slot(torch.tensor([[4, 1]]))][0].double().numpy() / cuts.get("temperature", 1.0)
    scores[0] = -np.inf
    expected = np.exp(scores) / np.exp(scores).sum()
    order = np.argsort(-expected)
    expected[order[cuts.get("top_k", 7) :]] = 0
    expected /= expected.sum()
    before = np.cumsum(expected[order]) - expected[order]
    expected[order[before >= cuts.get("top_p", 1.0)]] = 0
    expected *= draws / expected.sum()
    counts = np.bincount(tokens, minlength=7)
    assert (counts[expected == 0] == 0).all()
    seen = expected > 0
    assert (
        (counts[seen] - expected[seen]) ** 2 / expected[seen]
    ).sum() < 25  # chi-square, at most 5 degrees: p < 0.001


def test_later_tokens_follow_the_history(table_decoder: Table) -> None:
    decoder = table_decoder(vocab_size=5, seed=8)
    start = decoder.start(rows(*[0] * 20_000))
    made = sample(decoder, start, seed=0, keys=range(20_000), max_length=2)
    second = np.array([[*row.tolist(), 1][1] for row in made.tokens if len(row) and row[0] == 3])
    expected = decoder.table[decoder.slot(torch.tensor([[0, 1, 3]]))][0].exp().numpy() * len(second)
    counts = np.bincount(second, minlength=5)
    assert ((counts[1:] - expected[1:]) ** 2 / expected[1:]).sum() < 20


def test_a_row_is_the_same_alone_and_in_any_batch(table_decoder: Table) -> None:
    decoder = table_decoder(vocab_size=12, seed=5, end_bonus=1.0)
    ids = list(range(30))
    cuts = {"seed": 9, "temperature": 1.3, "top_p": 0.95, "max_length": 15}
    together = sample(decoder, decoder.start(rows(*ids)), keys=ids, **cuts)
    greedily = greedy(decoder, decoder.start(rows(*ids)), max_length=15)
    assert len({len(row) for row in together.tokens}) > 3
    for row in ids:
        alone = sample(decoder, decoder.start(rows(row)), keys=[row], **cuts)
        assert alone.tokens[0].tolist() == together.tokens[row].tolist()
        assert alone.log_probs[0] == pytest.approx(together.log_probs[row])
        assert alone.ended[0] == together.ended[row]
        assert (
            greedy(decoder, decoder.start(rows(row)), max_length=15).tokens[0].tolist() == greedily.tokens[row].tolist()
        )
    other_seed = sample(decoder, decoder.start(rows(*ids)), keys=ids, **{**cuts, "seed": 10})
    assert [row.tolist() for row in other_seed.tokens] != [row.tolist() for row in together.tokens]


def test_log_probability_is_the_models_own(table_decoder: Table) -> None:
    decoder = table_decoder(vocab_size=6, seed=3, end_bonus=1.0)
    made = sample(decoder, decoder.start(rows(1, 2, 3)), seed=0, keys=[1, 2, 3], temperature=0.5, top_k=2, max_length=4)
    for row, tokens in enumerate(made.tokens):
        expected = {
            (tuple(sequence), ended): total for sequence, total, ended in decoder.all_sequences(row + 1, max_length=4)
        }
        assert made.log_probs[row] == pytest.approx(expected[tuple(tokens.tolist()), made.ended[row]], abs=1e-5)
        assert made.mean_log_prob(row) == pytest.approx(made.log_probs[row] / (len(tokens) + made.ended[row]))


def test_finished_rows_leave_the_batch(table_decoder: Table) -> None:
    decoder = table_decoder(vocab_size=6, seed=3, end_bonus=2.0)
    made = greedy(decoder, decoder.start(rows(*range(40))), max_length=30)
    assert decoder.batches == sorted(decoder.batches, reverse=True)
    assert sum(decoder.batches) == sum(len(row) + ended for row, ended in zip(made.tokens, made.ended, strict=True))


def test_lengths_keep_their_bounds(table_decoder: Table) -> None:
    decoder = table_decoder(vocab_size=6, seed=3, end_bonus=3.0)
    for made in (
        greedy(decoder, decoder.start(rows(*range(20))), max_length=6, min_length=4),
        sample(decoder, decoder.start(rows(*range(20))), seed=0, keys=range(20), max_length=6, min_length=4),
    ):
        assert all(4 <= len(row) <= 6 for row in made.tokens)
        assert all(ended or len(row) == 6 for row, ended in zip(made.tokens, made.ended, strict=True))
    never = greedy(decoder, decoder.start(rows(1)), max_length=3, min_length=9)
    assert (len(never.tokens[0]), never.ended) == (3, [False])
