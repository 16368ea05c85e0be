import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnnlm.nn.lstm_kernel import lstm_window
from rnnlm.nn.shapes import LEAST_STEP, few, padded, product_rows
from rnnlm.nn.softmax import Clusters, linear_cross_entropy

CPU = torch.device("cpu")


@given(st.integers(1, 1 << 20))
def test_few_adds_little(num_rows: int) -> None:
    assert num_rows <= few(num_rows) <= num_rows + max(num_rows // 8, LEAST_STEP - 1)


@given(st.integers(1, 1 << 20))
def test_few_keeps_what_it_gives(num_rows: int) -> None:
    assert few(few(num_rows)) == few(num_rows)


@pytest.mark.parametrize("octave", range(7, 16))
def test_few_gives_eight_sizes_an_octave(octave: int) -> None:
    assert len({few(rows) for rows in range((1 << octave) + 1, (2 << octave) + 1)}) <= 9


def test_rows_are_added_in_bf16_on_cpus_only() -> None:
    assert product_rows(1_001, torch.float32, CPU) == 1_001
    assert product_rows(1_001, torch.bfloat16, CPU) == few(1_001) > 1_001
    assert product_rows(1_001, torch.bfloat16, torch.device("cuda")) == 1_001


def test_padded_adds_zeros_below() -> None:
    x_NX = torch.ones(3, 2)
    assert padded(x_NX, 3) is x_NX
    assert padded(x_NX, 5).tolist() == [[1, 1], [1, 1], [1, 1], [0, 0], [0, 0]]
    assert padded(torch.ones(3, dtype=torch.int64), 4).tolist() == [1, 1, 1, 0]


def _gradients(*, dtype: torch.dtype, num_rows: int, clustered: bool) -> list[torch.Tensor]:
    torch.manual_seed(0)
    features_NE, weight_VE, bias_V = torch.randn(num_rows, 24), torch.randn(300, 24) / 5, torch.randn(300)
    tensors = [features_NE, weight_VE, bias_V, torch.randn(2, 24) / 5, torch.randn(2)][: 5 if clustered else 3]
    for tensor in tensors:
        tensor.requires_grad_(True)
    target_N = torch.randint(0, 300, (num_rows,))
    clusters = Clusters((20, 100), *tensors[3:]) if clustered else None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        objective, nats_N = linear_cross_entropy(*tensors[:3], target_N, clusters=clusters)
    objective.backward()
    assert nats_N.shape == (num_rows,)
    return [nats_N, *(tensor.grad for tensor in tensors if tensor.grad is not None)]


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("num_rows", [1, 37, 64])
def test_added_rows_change_no_loss_and_no_gradient(num_rows: int, clustered: bool) -> None:
    exact = _gradients(dtype=torch.float32, num_rows=num_rows, clustered=clustered)
    padded = _gradients(dtype=torch.bfloat16, num_rows=num_rows, clustered=clustered)
    for expected, found in zip(exact, padded, strict=True):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, atol=0.05 * float(expected.abs().max()), rtol=0)


def test_added_rows_change_no_gradient_of_a_window() -> None:
    torch.manual_seed(0)
    batch, steps, size = 3, 7, 16
    tensors = [torch.randn(batch, steps, 8), torch.zeros(batch, size), torch.zeros(batch, size)]
    weights = [torch.randn(4 * size, 8) / 4, torch.randn(4 * size, size) / 4, torch.randn(4 * size)]
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        given = [weight.to(dtype).detach().requires_grad_(True) for weight in weights]
        x_BTX = tensors[0].clone().requires_grad_(True)
        lstm_window(x_BTX, tensors[1], tensors[2], *given)[0].float().sum().backward()
        found.append([x_BTX.grad, *(weight.grad for weight in given)])
    for exact, rounded in zip(*found, strict=True):
        assert rounded.shape == exact.shape
        torch.testing.assert_close(rounded.float(), exact, atol=0.05 * float(exact.abs().max()), rtol=0)
