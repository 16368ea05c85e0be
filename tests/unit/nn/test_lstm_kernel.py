import pytest
import torch

from rnnlm.nn import cells, lstm_kernel
from rnnlm.nn.cells import LstmCell
from rnnlm.nn.lstm_kernel import lstm_window
from rnnlm.nn.state import State


def _case(rows: int, steps: int, kind: torch.dtype) -> tuple[LstmCell, list[torch.Tensor]]:
    torch.manual_seed(0)
    cell = LstmCell(input_size=5, hidden_size=4).to(kind)
    given = [torch.randn(rows, steps, 5), torch.randn(rows, 4), torch.randn(rows, 4)]
    weights = [cell.weight_xh, cell.weight_hh, cell.bias_h]
    return cell, [each.detach().to(kind).requires_grad_() for each in (*given, *weights)]


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("elements", [1, 4 * 12, 1 << 15])
def test_gradients_of_input_state_and_weights(steps: int, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lstm_kernel, "CHUNK_ELEMENTS", elements)
    _, given = _case(3, steps, torch.float64)
    assert torch.autograd.gradcheck(lstm_window, given)


def test_gradient_of_each_result_alone() -> None:
    """The loss may depend on the outputs only, or on one of the states."""
    _, given = _case(2, 3, torch.float64)
    for number in range(3):
        assert torch.autograd.gradcheck(lambda *args, number=number: lstm_window(*args)[number], given)


def test_equals_the_fused_kernel() -> None:
    cell, given = _case(3, 7, torch.float32)
    output, hidden, memory = lstm_window(*given)
    expected, state = cell.sequence(given[0], State({"hidden": given[1], "cell": given[2]}))

    for found, wanted in ((output, expected), (hidden, state["hidden"]), (memory, state["cell"])):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_nothing_at_or_before_a_step_moves_with_a_later_input() -> None:
    _, given = _case(2, 6, torch.float32)
    before, *_ = lstm_window(*given)
    changed = given[0].detach().clone()
    changed[:, 4] += 1
    after, *_ = lstm_window(changed, *given[1:])
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


@pytest.mark.skipif(not cells.has_bf16(), reason="this CPU has no instructions for bf16")
@pytest.mark.parametrize("masked", [False, True])
def test_a_wide_cell_in_bf16_is_close_to_fp32(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    cell = LstmCell(input_size=32, hidden_size=64)
    x = torch.randn(8, 20, 32)
    state = cell.init_state(8).map(lambda zeros: torch.randn_like(zeros).requires_grad_())
    mask = (torch.rand_like(cell.weight_hh) > 0.5).float() * 2 if masked else None

    def run() -> list[torch.Tensor]:
        output, after = cell.sequence(x, state, recurrent_mask_GH=mask)
        loss = output.float().square().mean() + after["cell"].mean()
        gradients = torch.autograd.grad(loss, [*cell.parameters(), state["hidden"], state["cell"]])
        return [output.float(), after["hidden"], after["cell"], *gradients]

    expected = run()
    calls = []
    monkeypatch.setattr(cells, "WIDE", 64)
    monkeypatch.setattr(cells, "lstm_window", lambda *given: calls.append(1) or lstm_window(*given))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run()

    assert calls
    assert {each.dtype for each in found} == {torch.float32}
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() / other.norm() < 0.02


@pytest.mark.skipif(not cells.has_bf16(), reason="this CPU has no instructions for bf16")
def test_packed_weights_give_what_unpacked_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight, x, other = (torch.randn(*size).bfloat16() for size in ((48, 32), (8, 32), (8, 48)))
    packed = lstm_kernel._SameProduct(weight, 8)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    plain = lstm_kernel._SameProduct(weight, 8)
    torch.testing.assert_close(packed(x), plain(x), rtol=0.01, atol=0.01)
    torch.testing.assert_close(packed.plus(x, other), plain.plus(x, other), rtol=0.02, atol=0.05)
