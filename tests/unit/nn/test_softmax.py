import math

import pytest
import torch
from torch import Tensor, nn

from rnnlm.nn import softmax as module
from rnnlm.nn.softmax import Clusters, Copying, Sample, linear_cross_entropy, linear_log_softmax


def _inputs(dtype: torch.dtype = torch.float32, rows: int = 9, vocab: int = 11) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(*size, dtype=dtype).requires_grad_() for size in ((rows, 5), (vocab, 5), (vocab,))]


TARGET = torch.tensor([3, 0, 10, 1, 0, 7, 7, 2, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_equals_torch(smoothing: float, chunk: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", block)
    inputs = _inputs(rows=90)
    target = TARGET.repeat(10)
    objective, nats = linear_cross_entropy(*inputs, target, label_smoothing=smoothing)
    logits = nn.functional.linear(*inputs)
    options = {"ignore_index": 0, "reduction": "sum"}
    expected = nn.functional.cross_entropy(logits, target, label_smoothing=smoothing, **options)
    torch.testing.assert_close(objective, expected)
    true = nn.functional.cross_entropy(logits, target, ignore_index=0, reduction="none")
    torch.testing.assert_close(nats, true)
    assert not nats.requires_grad
    for got, wanted in zip(
        torch.autograd.grad(objective / 7, inputs), torch.autograd.grad(expected / 7, inputs), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_in_bf16_it_is_close_to_fp32(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", block)
    inputs, target = _inputs(rows=90), TARGET.repeat(10)

    def run() -> list[Tensor]:
        objective, nats = linear_cross_entropy(*inputs, target)
        return [nats, *torch.autograd.grad(objective, inputs)]

    expected = run()
    with torch.autocast("cpu", torch.bfloat16):
        found = run()
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() / other.norm() < 0.01


def test_an_objective_can_be_differentiated_twice_over() -> None:
    inputs = _inputs()
    objective, _ = linear_cross_entropy(*inputs, TARGET)
    once = torch.autograd.grad(objective, inputs, retain_graph=True)
    halved = torch.autograd.grad(objective / 2, inputs, retain_graph=True)
    again = torch.autograd.grad(objective, inputs)
    for first, half, second in zip(once, halved, again, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(half, first / 2)


def test_gradcheck_with_copying() -> None:
    inputs = _inputs(torch.float64)
    mixture = [torch.randn(9, dtype=torch.float64).sub_(1).requires_grad_() for _ in range(2)]

    def objective(features: Tensor, weight: Tensor, bias: Tensor, generate: Tensor, copy: Tensor) -> Tensor:
        return linear_cross_entropy(features, weight, bias, TARGET, copying=Copying(generate, copy))[0]

    assert torch.autograd.gradcheck(objective, (*inputs, *mixture))


def test_smoothing_beside_copying_weighs_by_the_constant_responsibility() -> None:
    inputs = _inputs(torch.float64)
    mixture = [torch.randn(9, dtype=torch.float64).sub_(1).requires_grad_() for _ in range(2)]
    objective, _ = linear_cross_entropy(*inputs, TARGET, copying=Copying(*mixture), label_smoothing=0.2)
    log_probs = torch.log_softmax(nn.functional.linear(*inputs), 1)
    generated = mixture[0] + log_probs.gather(1, TARGET[:, None])[:, 0]
    total = torch.logaddexp(generated, mixture[1])
    share = (generated - total).exp().detach()
    real = TARGET != 0
    expected = ((-0.8 * total - 0.2 * share * log_probs.mean(1)) * real).sum()
    torch.testing.assert_close(objective, expected)
    wanted = torch.autograd.grad(expected, [*inputs, *mixture])
    for got, want in zip(torch.autograd.grad(objective, [*inputs, *mixture]), wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_only_padding_and_nothing_at_all_give_zero() -> None:
    for target in (torch.zeros(9, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)):
        inputs = _inputs(rows=target.numel())
        objective, nats = linear_cross_entropy(*inputs, target)
        objective.backward()
        assert objective == 0
        assert nats.shape == target.shape
        assert all((tensor.grad == 0).all() for tensor in inputs)


def test_huge_logits_stay_finite() -> None:
    features = torch.tensor([[1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]])
    objective, nats = linear_cross_entropy(features, weight, torch.zeros(3), torch.tensor([1]))
    assert objective.item() == nats.item() == 2e4
    assert torch.autograd.grad(objective, features)[0].item() == 2


def test_uniform_costs_the_logarithm_of_the_vocabulary() -> None:
    with torch.no_grad():
        _, nats = linear_cross_entropy(torch.randn(9, 5), torch.zeros(11, 5), torch.ones(11), TARGET)
    torch.testing.assert_close(nats[TARGET != 0], torch.full((6,), math.log(11)))


def test_autocast_computes_in_bf16_and_sums_in_fp32() -> None:
    inputs = _inputs()
    exact, _ = linear_cross_entropy(*inputs, TARGET)
    with torch.autocast("cpu", torch.bfloat16):
        objective, nats = linear_cross_entropy(*inputs, TARGET)
    assert objective.dtype == nats.dtype == torch.float32
    torch.testing.assert_close(objective, exact, rtol=0.02, atol=0)
    for got, wanted in zip(torch.autograd.grad(objective, inputs), torch.autograd.grad(exact, inputs), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, wanted, rtol=0.1, atol=0.05)


def _clusters(*cutoffs: int, dtype: torch.dtype = torch.float32) -> Clusters:
    generator = torch.Generator().manual_seed(2)
    weight, bias = (torch.randn(len(cutoffs), *size, generator=generator, dtype=dtype) for size in ((5,), ()))
    return Clusters(cutoffs, weight.requires_grad_(), bias.requires_grad_())


@pytest.mark.parametrize("clustered", [False, True])
def test_in_bf16_biases_stay_in_fp32(clustered: bool) -> None:
    clusters = Clusters((4, 8), torch.zeros(2, 5), torch.tensor([1.003, 2.007])) if clustered else None
    layer = torch.randn(9, 5), torch.zeros(11, 5), torch.linspace(3.0, 5.0, 11)
    _, expected = linear_cross_entropy(*layer, TARGET, clusters=clusters)
    with torch.autocast("cpu", torch.bfloat16):
        _, nats = linear_cross_entropy(*layer, TARGET, clusters=clusters)
    torch.testing.assert_close(nats, expected)


@pytest.mark.parametrize("cutoffs", [(1,), (4,), (3, 8), (2, 7, 8, 10)])
def test_clusters_make_a_distribution_of_which_the_loss_is_the_negative_logarithm(cutoffs: tuple[int, ...]) -> None:
    inputs, clusters = _inputs(), _clusters(*cutoffs)
    log_p = linear_log_softmax(*inputs, clusters)
    assert log_p.shape == (9, 11)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(9))
    objective, nats = linear_cross_entropy(*inputs, TARGET, clusters=clusters)
    expected = -log_p.gather(1, TARGET[:, None])[:, 0] * (TARGET != 0)
    torch.testing.assert_close(nats, expected)
    torch.testing.assert_close(objective, expected.sum())
    leaves = [*inputs, *clusters[1:]]
    wanted = torch.autograd.grad(expected.sum(), leaves)
    for got, want in zip(torch.autograd.grad(objective, leaves), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradcheck_with_clusters(smoothing: float) -> None:
    clusters = _clusters(3, 8, dtype=torch.float64)

    def objective(*layer: Tensor) -> Tensor:
        parts = Clusters(clusters.cutoffs, *layer[3:])
        return linear_cross_entropy(*layer[:3], TARGET, clusters=parts, label_smoothing=smoothing)[0]

    assert torch.autograd.gradcheck(objective, (*_inputs(torch.float64), *clusters[1:]))


def test_clusters_that_no_target_is_in_have_no_gradient_but_their_own_rows() -> None:
    inputs, clusters = _inputs(), _clusters(4, 8)
    objective, _ = linear_cross_entropy(*inputs, TARGET % 4, clusters=clusters)
    objective.backward()
    assert (inputs[1].grad[4:] == 0).all()
    assert (clusters.weight.grad != 0).all()


def test_clusters_exclude_copying_and_samples() -> None:
    zeros = torch.zeros(9)
    for other in ({"copying": Copying(zeros, zeros)}, {"sample": Sample(zeros, TARGET, torch.zeros(11), zeros[0])}):
        with pytest.raises(ValueError, match="clusters go with neither"):
            linear_cross_entropy(*_inputs(), TARGET, clusters=_clusters(4), **other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    inputs = _inputs()
    mixture = [torch.randn(9).sub_(1).requires_grad_() for _ in range(2)]

    def run(device: str) -> list[Tensor]:
        moved = [tensor.detach().to(device).requires_grad_() for tensor in (*inputs, *mixture)]
        objective, nats = linear_cross_entropy(
            *moved[:3], TARGET.to(device), copying=Copying(*moved[3:]), label_smoothing=0.1
        )
        return [objective, nats, *torch.autograd.grad(objective, moved)]

    for got, wanted in zip(run("cuda"), run("cpu"), strict=True):
        torch.testing.assert_close(got.cpu(), wanted, rtol=1e-4, atol=1e-5)
