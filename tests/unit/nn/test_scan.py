import pytest
import torch

from rnnlm.nn import scan
from rnnlm.nn.scan import linear_scan


def _inputs(steps: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    keep, add = torch.rand(steps, 2, 3, dtype=torch.float64), torch.randn(steps, 2, 3, dtype=torch.float64)
    return [tensor.requires_grad_() for tensor in (keep, add, torch.randn(2, 3, dtype=torch.float64))]


@pytest.mark.parametrize("steps", [1, 2, 7, 8])
def test_equals_the_recurrence(steps: int) -> None:
    keep, add, start = _inputs(steps)
    hidden, expected = start, []
    for t in range(steps):
        hidden = keep[t] * hidden + add[t]
        expected.append(hidden)
    torch.testing.assert_close(linear_scan(keep, add, start), torch.stack(expected))
    torch.testing.assert_close(scan._in_rounds(keep, add, start), torch.stack(expected))


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(linear_scan, _inputs(5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu() -> None:
    inputs = _inputs(70)
    expected = linear_scan(*inputs)
    moved = [tensor.detach().cuda().requires_grad_() for tensor in inputs]
    output = linear_scan(*moved)
    torch.testing.assert_close(output.cpu(), expected)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    for got, want in zip(torch.autograd.grad(output.square().sum(), moved), wanted, strict=True):
        torch.testing.assert_close(got.cpu(), want)
