"""Choice of the best candidates, and the distributions that tokens are drawn from."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from rnnlm.decoding.processors import candidates, stable_topk


@pytest.mark.parametrize("width", [1, 7, 100, 4_000, 4_013])
@pytest.mark.parametrize("k", [1, 5, 30])
def test_topk_is_exact(width: int, k: int) -> None:
    k = min(k, width)
    scores = torch.randn(6, width, generator=torch.Generator().manual_seed(width + k))
    values, index = stable_topk(scores, k)
    expected, expected_index = torch.sort(scores, dim=1, descending=True, stable=True)
    assert torch.equal(values, expected[:, :k])
    assert torch.equal(index, expected_index[:, :k])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(12, 3_000), st.integers(1, 5))
def test_ties_go_to_the_lower_index(seed: int, k: int, width: int, levels: int) -> None:
    scores = torch.randint(0, levels + 1, (4, width), generator=torch.Generator().manual_seed(seed)).float()
    scores[scores == levels] = -torch.inf
    values, index = stable_topk(scores, k)
    expected, expected_index = torch.sort(scores, dim=1, descending=True, stable=True)
    assert torch.equal(values, expected[:, :k])
    finite = values.isfinite()
    assert torch.equal(index[finite], expected_index[:, :k][finite])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(12, 1_500), st.integers(1, 5), st.integers(1, 6))
def test_parts_of_a_row_compete_with_their_offsets(seed: int, k: int, width: int, levels: int, parts: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels + 1, (4, parts, width), generator=generator).float()
    offsets = torch.randint(-2, 3, (4, parts), generator=generator).double()
    offsets[offsets == 2] = -torch.inf
    values, index = stable_topk(scores.flatten(1), k, offsets)
    expected, expected_index = torch.sort(
        (scores + offsets[:, :, None]).flatten(1), dim=1, descending=True, stable=True
    )
    assert values.dtype == torch.float64
    assert torch.equal(values, expected[:, :k])
    finite = values.isfinite()
    assert torch.equal(index[finite], expected_index[:, :k][finite])


def test_sums_are_not_rounded_to_the_scores_type() -> None:
    scores = torch.randn(3, 4 * 2_000, generator=torch.Generator().manual_seed(0))
    offsets = torch.full((3, 4), -1e9, dtype=torch.float64)
    values, index = stable_topk(scores, 5, offsets)
    assert torch.equal(index, stable_topk(scores, 5)[1])
    assert (values[:, :-1] > values[:, 1:]).all()


def shares(log_probs: torch.Tensor, **options: object) -> torch.Tensor:
    """The distribution over the whole vocabulary that `candidates` describes."""
    chosen = candidates(log_probs, **options)  # type: ignore[arg-type]
    weights = chosen.weights_BC / chosen.weights_BC.sum(1, keepdim=True)
    if chosen.tokens_BC is None:
        return weights
    return torch.zeros(log_probs.shape, dtype=torch.float64).scatter_(1, chosen.tokens_BC, weights)


LOG_PROBS = torch.log(torch.tensor([[0.05, 0.4, 0.1, 0.25, 0.2], [0.2, 0.2, 0.2, 0.2, 0.2]]))


def test_without_cuts_it_is_the_models_distribution() -> None:
    torch.testing.assert_close(shares(LOG_PROBS, temperature=1.0, top_k=None, top_p=None).float(), LOG_PROBS.exp())
    torch.testing.assert_close(shares(LOG_PROBS, temperature=1.0, top_k=9, top_p=1.0).float(), LOG_PROBS.exp())


def test_temperature_divides_log_probabilities() -> None:
    expected = torch.softmax(LOG_PROBS.double() / 0.5, -1)
    torch.testing.assert_close(shares(LOG_PROBS, temperature=0.5, top_k=None, top_p=None), expected, atol=1e-6, rtol=0)


def test_top_k_keeps_the_most_probable_and_lower_ids_among_equals() -> None:
    kept = shares(LOG_PROBS, temperature=1.0, top_k=2, top_p=None)
    torch.testing.assert_close(kept[0], torch.tensor([0, 0.4, 0, 0.25, 0], dtype=torch.float64) / 0.65)
    assert (kept[1] > 0).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.3, [1]), (0.41, [1, 3]), (0.64, [1, 3]), (0.66, [1, 3, 4]), (0.99, [0, 1, 2, 3, 4])]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float, kept: list[int]) -> None:
    result = shares(LOG_PROBS, temperature=1.0, top_k=None, top_p=top_p)
    assert result[0].nonzero()[:, 0].tolist() == kept
    torch.testing.assert_close(result[0][kept].sum(), torch.tensor(1.0, dtype=torch.float64))


def test_top_p_looks_at_what_top_k_left() -> None:
    assert shares(LOG_PROBS, temperature=1.0, top_k=2, top_p=0.6)[0].nonzero()[:, 0].tolist() == [1]
    assert shares(LOG_PROBS, temperature=1.0, top_k=2, top_p=0.65)[0].nonzero()[:, 0].tolist() == [1, 3]


@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_top_p_is_the_same_whether_or_not_the_whole_vocabulary_is_sorted(scale: float) -> None:
    log_probs = torch.log_softmax(torch.randn(8, 700, generator=torch.Generator().manual_seed(1)) * scale, -1)
    together = shares(log_probs, temperature=1.0, top_k=None, top_p=0.9)
    for row in range(8):
        alone = shares(log_probs[row : row + 1], temperature=1.0, top_k=None, top_p=0.9)
        torch.testing.assert_close(alone[0], together[row])
        probabilities = log_probs[row].double().exp()
        kept = together[row] > 0
        assert probabilities[kept].sum() >= 0.9 - 1e-6
        assert probabilities[kept].sum() - probabilities[kept].min() < 0.9
        assert probabilities[kept].min() >= probabilities[~kept].max()
