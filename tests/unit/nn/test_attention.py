import pytest
import torch

from rnnlm.nn import attention as module
from rnnlm.nn.attention import AdditiveAttention, Attention, DotAttention

KINDS = [DotAttention, AdditiveAttention]


@pytest.fixture(params=KINDS)
def attention(request: pytest.FixtureRequest) -> Attention:
    torch.manual_seed(0)
    return request.param(query_size=4, memory_size=6)


def test_weights_sum_to_one_and_are_zero_at_padding(attention: Attention) -> None:
    lengths = torch.tensor([5, 2])
    keys = attention.prepare(torch.randn(2, 5, 6), lengths)
    context, weights = attention(torch.randn(2, 3, 4), keys)
    assert context.shape == (2, 3, 6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3))
    assert (weights[1, :, 2:] == 0).all()
    torch.testing.assert_close(context, weights @ keys["values"])


def test_padding_and_companions_do_not_matter(attention: Attention) -> None:
    memory, query = torch.randn(1, 3, 6), torch.randn(1, 2, 4)
    alone, _ = attention(query, attention.prepare(memory, torch.tensor([3])))
    padded = torch.cat([memory, torch.full((1, 4, 6), 1e4)], 1)
    both = torch.cat([torch.randn(1, 7, 6), padded])
    keys = attention.prepare(both, torch.tensor([7, 3]))
    together, _ = attention(torch.cat([torch.randn(1, 2, 4), query]), keys)
    torch.testing.assert_close(together[1:], alone)


def test_gradcheck(attention: Attention) -> None:
    attention = attention.double()
    lengths = torch.tensor([3, 1])

    def run(query: torch.Tensor, memory: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys = attention.prepare(memory, lengths)
        return attention(query, keys)

    query = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (query, memory, *attention.parameters()))


def test_dot_scores_by_the_formula() -> None:
    attention = DotAttention(query_size=4, memory_size=6)
    query, memory = torch.randn(2, 3, 4), torch.randn(2, 5, 6)
    expected = torch.einsum("bth,hm,bsm->bts", query, attention.key.weight, memory)
    torch.testing.assert_close(attention.scores(query, attention.project_keys(memory)), expected)


def test_additive_weights_by_the_formula() -> None:
    attention = AdditiveAttention(query_size=4, memory_size=6)
    query, memory = torch.randn(2, 3, 4), torch.randn(2, 5, 6)
    inner = torch.tanh(attention.query(query)[:, :, None] + attention.key(memory)[:, None])
    expected = torch.softmax(inner @ attention.score, dim=-1)
    _, weights = attention(query, attention.prepare(memory, torch.tensor([5, 5])))
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize("chunk", [1, 80, 300])
def test_additive_in_pieces_equals_the_whole(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    attention = AdditiveAttention(query_size=4, memory_size=6)
    query, memory = torch.randn(3, 7, 4, requires_grad=True), torch.randn(3, 5, 6, requires_grad=True)

    def run() -> list[torch.Tensor]:
        context, weights = attention(query, attention.prepare(memory, torch.tensor([5, 4, 5])))
        gradients = torch.autograd.grad(
            context.square().sum() + weights.square().sum(), (query, memory, attention.score)
        )
        return [context, weights, *gradients]

    whole = run()
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
    for piecewise, expected in zip(run(), whole, strict=True):
        torch.testing.assert_close(piecewise, expected)
