"""Our cells give torch's own numbers once they have torch's weights."""

import pytest
import torch
from torch import nn

from rnnlm.nn.cells import Cell, ElmanCell, GruCell, LstmCell
from rnnlm.nn.state import State

KINDS = [(ElmanCell, nn.RNN), (GruCell, nn.GRU), (LstmCell, nn.LSTM)]


def _pair(ours: type[Cell], torch_layer: type[nn.RNNBase]) -> tuple[Cell, nn.RNNBase]:
    torch.manual_seed(3)
    cell = ours(input_size=7, hidden_size=5)
    reference = torch_layer(7, 5, batch_first=True)
    with torch.no_grad():
        cell.weight_xh.copy_(reference.weight_ih_l0)
        cell.weight_hh.copy_(reference.weight_hh_l0)
        second = reference.bias_hh_l0.clone()
        if isinstance(cell, GruCell):
            cell.bias_n.copy_(second[-5:])
            second[-5:] = 0
        cell.bias_h.copy_(reference.bias_ih_l0 + second)
    return cell, reference


@pytest.mark.parametrize(("ours", "torch_layer"), KINDS)
def test_forward_and_all_gradients(ours: type[Cell], torch_layer: type[nn.RNNBase]) -> None:
    cell, reference = _pair(ours, torch_layer)
    names = cell.state_names
    x = torch.randn(3, 6, 7)
    initial = [torch.randn(3, 5) for _ in names]
    weight = torch.randn(3, 6, 5)

    def run(call) -> list[torch.Tensor]:
        inputs = [tensor.clone().requires_grad_() for tensor in (x, *initial)]
        output, last = call(inputs[0], inputs[1:])
        (output * weight).sum().add(sum((tensor * (i + 2)).sum() for i, tensor in enumerate(last))).backward()
        return [output, *last, *(tensor.grad for tensor in inputs)]

    def call_ours(x, states):
        output, state = cell.sequence(x, State(dict(zip(names, states, strict=True))))
        return output, [state[name] for name in names]

    def call_reference(x, states):
        carried = tuple(state[None] for state in states)
        output, last = reference(x, carried if len(carried) > 1 else carried[0])
        return output, [part[0] for part in (last if isinstance(last, tuple) else (last,))]

    for got, expected in zip(run(call_ours), run(call_reference), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cell.weight_xh.grad, reference.weight_ih_l0.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cell.weight_hh.grad, reference.weight_hh_l0.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cell.bias_h.grad, reference.bias_ih_l0.grad, rtol=1e-5, atol=1e-5)
    if isinstance(cell, GruCell):
        torch.testing.assert_close(cell.bias_n.grad, reference.bias_hh_l0.grad[-5:], rtol=1e-5, atol=1e-5)


def test_elman_cell_by_its_equation() -> None:
    cell = ElmanCell(input_size=1, hidden_size=1)
    with torch.no_grad():
        cell.weight_xh.fill_(0.5)
        cell.weight_hh.fill_(-2.0)
        cell.bias_h.fill_(0.25)
    output, _ = cell.sequence(torch.tensor([[[1.0], [3.0]]]), State({"hidden": torch.tensor([[0.1]])}))
    # tanh(0.5 * 1 - 2 * 0.1 + 0.25) = tanh(0.55); tanh(0.5 * 3 - 2 * tanh(0.55) + 0.25)
    torch.testing.assert_close(output.flatten(), torch.tensor([0.5005202, 0.6345278]), rtol=0, atol=1e-6)
