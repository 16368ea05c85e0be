from typing import Any

import pytest
import torch
from torch import Tensor

from rnnlm.nn.dropout import MaskContext, uniform
from rnnlm.nn.sampled_softmax import cross_entropy, drawn, sampled_cross_entropy
from rnnlm.nn.softmax import Clusters, Copying, linear_cross_entropy

VOCAB, SIZE = 50, 20
TARGET = torch.tensor([3, 0, 49, 1, 0, 30, 30, 2, 0])


def _inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(*size, dtype=dtype).requires_grad_() for size in ((9, 5), (VOCAB, 5), (VOCAB,))]


def _masks(step: int, device: str = "cpu") -> MaskContext:
    return MaskContext(1, step, torch.arange(3, device=device))


def _nats(step: int) -> Tensor:
    with torch.no_grad():
        return sampled_cross_entropy(*_inputs(torch.float64), TARGET, size=SIZE, masks=_masks(step), site=3)[1]


def _mixture(dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(9, dtype=dtype).sub_(1).requires_grad_() for _ in range(2)]


def test_gradcheck() -> None:
    def objective(*inputs: Tensor) -> Tensor:
        return sampled_cross_entropy(*inputs, TARGET, size=SIZE, masks=_masks(7), site=3, label_smoothing=0.1)[0]

    assert torch.autograd.gradcheck(objective, _inputs(torch.float64))


def test_gradcheck_with_copying() -> None:
    def objective(*inputs: Tensor) -> Tensor:
        options = {"size": SIZE, "masks": _masks(7), "site": 3, "copying": Copying(*inputs[3:])}
        return sampled_cross_entropy(*inputs[:3], TARGET, **options)[0]

    assert torch.autograd.gradcheck(objective, [*_inputs(torch.float64), *_mixture(torch.float64)])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("copies", [False, True])
def test_the_whole_vocabulary_as_its_sample_is_the_softmax(smoothing: float, copies: bool) -> None:
    inputs, mixture = _inputs(), _mixture(torch.float32) if copies else []
    options = {"label_smoothing": smoothing, "copying": Copying(*mixture) if copies else None}
    objective, nats = sampled_cross_entropy(*inputs, TARGET, size=VOCAB, masks=_masks(7), site=3, **options)
    expected, exact = linear_cross_entropy(*inputs, TARGET, **options)
    torch.testing.assert_close(objective, expected)
    torch.testing.assert_close(nats, exact)
    leaves = [*inputs, *mixture]
    for got, wanted in zip(torch.autograd.grad(objective, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_smoothing_takes_the_mean_of_all_logits_from_the_sample() -> None:
    features, weight, bias = inputs = _inputs(torch.float64)
    options = {"size": SIZE, "masks": _masks(7), "site": 3}
    smoothed, nats = sampled_cross_entropy(*inputs, TARGET, label_smoothing=0.1, **options)
    ids = drawn(VOCAB, SIZE, uniform(_masks(7), 3, torch.device("cpu")))
    logits = (features @ weight.t() + bias).detach()
    odds = 1 / _chance(SIZE)[ids]
    mean = (logits[:, ids] * odds).sum(1) / odds.sum()
    own = logits.gather(1, TARGET[:, None])[:, 0]
    expected = nats.sum() + 0.1 * ((own - mean) * (TARGET != 0)).sum()
    torch.testing.assert_close(smoothed.detach(), expected, rtol=1e-3, atol=0)


def test_on_average_it_is_the_sum_over_the_vocabulary() -> None:
    _, exact = linear_cross_entropy(*_inputs(torch.float64), TARGET)
    # 1 / p = Z / exp(y_t), whose mean is unbiased; that of its logarithm is not.
    mean = torch.stack([_nats(step).exp() for step in range(2_000)]).mean(0)
    torch.testing.assert_close(mean, exact.exp(), rtol=0.05, atol=0)
    assert (_nats(0)[TARGET == 0] == 0).all()


def _chance(size: int) -> Tensor:
    """How often each token is drawn, counted."""
    starts = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    samples = drawn(VOCAB, size, starts[:, None])
    assert (samples.diff(dim=1) > 0).all()  # none twice
    return torch.bincount(samples.flatten(), minlength=VOCAB) / len(starts)


@pytest.mark.parametrize("size", [1, SIZE, VOCAB])
def test_each_token_is_drawn_as_often_as_its_rank_says_and_at_most_once(size: int) -> None:
    share_V = _chance(size)
    assert share_V.sum() == pytest.approx(size)
    # min(1, c / rank), where c is what makes that sum right
    factor = float(share_V[-1]) * VOCAB
    expected_V = (factor / torch.arange(1, VOCAB + 1)).clamp_max(1.0)
    torch.testing.assert_close(share_V, expected_V, rtol=0.02, atol=0)


def test_a_sample_is_a_function_of_seed_and_step() -> None:
    assert torch.equal(_nats(3), _nats(3))
    assert not torch.equal(_nats(3), _nats(4))


def test_a_row_has_the_same_loss_beside_any_others() -> None:
    features, weight, bias = _inputs(torch.float64)
    options = {"size": SIZE, "masks": _masks(7), "site": 3}
    _, whole = sampled_cross_entropy(features, weight, bias, TARGET, **options)
    _, part = sampled_cross_entropy(features[2:6], weight, bias, TARGET[2:6], **options)
    torch.testing.assert_close(part, whole[2:6])


def test_it_is_for_training_and_for_one_softmax() -> None:
    inputs = _inputs()

    def nats(samples: int | None, masks: MaskContext | None, **options: Any) -> Tensor:
        return cross_entropy(*inputs, TARGET, samples=samples, masks=masks, site=3, **options)[1]

    whole = linear_cross_entropy(*inputs, TARGET)[1]
    for samples, masks in ((None, _masks(7)), (VOCAB, _masks(7)), (SIZE, None)):
        assert torch.equal(nats(samples, masks), whole)
    sampled = sampled_cross_entropy(*inputs, TARGET, size=SIZE, masks=_masks(7), site=3)[1]
    assert torch.equal(nats(SIZE, _masks(7)), sampled)
    assert not torch.equal(sampled, whole)
    with pytest.raises(ValueError, match="is not sampled"):
        nats(SIZE, _masks(7), clusters=Clusters((4,), torch.zeros(1, 5), torch.zeros(1)))


def test_in_bf16_it_is_close_to_fp32() -> None:
    inputs = _inputs()

    def run() -> list[Tensor]:
        objective, nats = sampled_cross_entropy(*inputs, TARGET, size=SIZE, masks=_masks(7), site=3)
        return [nats, *torch.autograd.grad(objective, inputs)]

    expected = run()
    with torch.autocast("cpu", torch.bfloat16):
        found = run()
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() / other.norm() < 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False

    def run(device: str) -> list[Tensor]:
        inputs = [tensor.detach().to(device).requires_grad_() for tensor in _inputs()]
        options = {"size": SIZE, "masks": _masks(7, device), "site": 3}
        objective, nats = sampled_cross_entropy(*inputs, TARGET.to(device), **options)
        return [tensor.cpu() for tensor in (objective, nats, *torch.autograd.grad(objective, inputs))]

    for got, wanted in zip(run("cuda"), run("cpu"), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
