"""Beam search against exhaustive search on small trees, and its rules about ends, ties and batches."""

from typing import Any

import numpy as np
import pytest
import torch

from rnnlm.decoding.beam import beam_search
from rnnlm.decoding.sampling import greedy

Table = Any


def rows(*ids: int) -> list[np.ndarray]:
    return [np.array([row]) for row in ids]


def exhaustive(
    decoder: Table, row: int, max_length: int, penalty: float, min_length: int = 0
) -> tuple[list[int], float]:
    """The sequence with the best score among all that end or have the greatest length, and that score."""
    scored = [
        (total / (len(tokens) + ended) ** penalty, tokens)
        for tokens, total, ended in decoder.all_sequences(row, max_length)
        if not ended or len(tokens) >= min_length
    ]
    score, tokens = max(scored, key=lambda pair: pair[0])
    return tokens, score


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize(("vocab_size", "max_length"), [(3, 6), (4, 4), (5, 3), (6, 2), (9, 1)])
@pytest.mark.parametrize("min_length", [0, 1])
def test_a_wide_beam_is_exhaustive_search(
    table_decoder: Table, penalty: float, vocab_size: int, max_length: int, min_length: int
) -> None:
    decoder = table_decoder(vocab_size=vocab_size, seed=vocab_size, scale=2.0)
    ids = list(range(12))
    made = beam_search(
        decoder,
        decoder.start(rows(*ids)),
        beam_size=vocab_size ** (max_length - 1),
        length_penalty=penalty,
        max_length=max_length,
        min_length=min_length,
    )
    for row in ids:
        tokens, score = exhaustive(decoder, row, max_length, penalty, min_length)
        assert made.tokens[row].tolist() == tokens
        assert made.log_probs[row] / (len(tokens) + made.ended[row]) ** penalty == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_no_beam_beats_exhaustive_search(table_decoder: Table, penalty: float) -> None:
    decoder = table_decoder(vocab_size=4, seed=1, scale=1.5)
    ids = list(range(20))
    best = [exhaustive(decoder, row, 5, penalty)[1] for row in ids]
    reached = []
    for beam_size in (1, 2, 3, 5, 10, 40):
        options = {"beam_size": beam_size, "length_penalty": penalty, "max_length": 5}
        made = beam_search(decoder, decoder.start(rows(*ids)), **options)
        scores = [
            total / (len(row) + ended) ** penalty
            for total, row, ended in zip(made.log_probs, made.tokens, made.ended, strict=True)
        ]
        assert all(score <= top + 1e-5 for score, top in zip(scores, best, strict=True))
        reached.append(sum(score > top - 1e-5 for score, top in zip(scores, best, strict=True)))
    assert reached[-1] == 20
    assert reached[0] < reached[-1]


@pytest.mark.parametrize(("seed", "end_bonus"), [(0, 0.0), (1, 1.5), (2, 3.0)])
def test_a_beam_of_one_is_greedy(table_decoder: Table, seed: int, end_bonus: float) -> None:
    decoder = table_decoder(vocab_size=50, seed=seed, end_bonus=end_bonus)
    start = decoder.start(rows(*range(50)))
    for min_length in (0, 3):
        one = beam_search(decoder, start, beam_size=1, max_length=12, min_length=min_length)
        by_steps = greedy(decoder, start, max_length=12, min_length=min_length)
        assert [row.tolist() for row in one.tokens] == [row.tolist() for row in by_steps.tokens]
        assert one.ended == by_steps.ended
        np.testing.assert_allclose(one.log_probs, by_steps.log_probs, rtol=1e-12)


def test_a_row_is_the_same_alone_and_in_any_batch(table_decoder: Table) -> None:
    decoder = table_decoder(vocab_size=20, seed=4, end_bonus=1.5)
    ids = list(range(40))
    options = {"beam_size": 4, "max_length": 12}
    together = beam_search(decoder, decoder.start(rows(*ids)), **options)
    assert len({len(row) for row in together.tokens}) > 2
    for row in ids:
        alone = beam_search(decoder, decoder.start(rows(row)), **options)
        assert alone.tokens[0].tolist() == together.tokens[row].tolist()
        assert (alone.log_probs[0], alone.ended[0]) == (together.log_probs[row], together.ended[row])


def test_finished_rows_leave_the_batch(table_decoder: Table) -> None:
    decoder = table_decoder(vocab_size=20, seed=4, end_bonus=3.0)
    beam_search(decoder, decoder.start(rows(*range(40))), beam_size=4, max_length=30)
    assert decoder.batches[:2] == [40, 160]
    assert decoder.batches[1:] == sorted(decoder.batches[1:], reverse=True)
    assert decoder.batches[-1] < 80
    assert len(decoder.batches) < 30


@pytest.mark.parametrize("penalty", [0.0, 0.5, 1.0])
def test_stopping_early_changes_nothing(table_decoder: Table, penalty: float) -> None:
    """A greater limit weakens the bound, so that the search goes on longer; results that had ended stay."""
    ids = list(range(30))
    decoder = table_decoder(vocab_size=9, seed=6, scale=2.0, end_bonus=1.0)
    options = {"beam_size": 3, "length_penalty": penalty}
    short = beam_search(decoder, decoder.start(rows(*ids)), max_length=25, **options)
    steps = len(decoder.batches)
    decoder.batches.clear()
    long = beam_search(decoder, decoder.start(rows(*ids)), max_length=500, **options)
    assert all(short.ended)
    assert [row.tolist() for row in short.tokens] == [row.tolist() for row in long.tokens]
    assert steps <= len(decoder.batches) < 100


def test_among_equals_the_lower_tokens_win(table_decoder: Table) -> None:
    decoder = table_decoder(vocab_size=6, seed=0)
    decoder.table = torch.full_like(decoder.table, -np.log(6))
    for beam_size in (1, 2, 4):
        made = beam_search(decoder, decoder.start(rows(1, 2)), beam_size=beam_size, max_length=3, min_length=2)
        assert [row.tolist() for row in made.tokens] == [[2, 2], [2, 2]]


def test_a_sequence_may_be_cut_at_the_limit(table_decoder: Table) -> None:
    decoder = table_decoder(vocab_size=6, seed=3, end_bonus=-1.0)
    never = beam_search(decoder, decoder.start(rows(*range(10))), beam_size=3, max_length=4, min_length=4)
    assert not any(never.ended)
    assert all(len(row) == 4 for row in never.tokens)
    either = beam_search(decoder, decoder.start(rows(*range(40))), beam_size=3, max_length=4)
    assert {True, False} == set(either.ended)


def test_a_beam_wider_than_the_vocabulary(table_decoder: Table) -> None:
    decoder = table_decoder(vocab_size=3, seed=3)
    made = beam_search(decoder, decoder.start(rows(0)), beam_size=50, max_length=1)
    assert [*made.tokens[0].tolist(), 1][0] == int(decoder.table[decoder.slot(torch.tensor([[0, 1]]))][0].argmax())
