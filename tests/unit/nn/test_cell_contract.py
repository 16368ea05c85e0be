"""What every cell promises, beyond the equalities of `test_cells.py`: in bf16, saved and loaded, with dropped weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rnnlm.models.stack import CELLS, make_cell
from rnnlm.nn import cells
from rnnlm.nn.cells import Cell, LstmCell, RecurrentCell
from rnnlm.nn.lstm_kernel import lstm_window
from rnnlm.nn.state import State

BF16_BOUND = 0.02
"""Relative error of outputs and gradients, in the norm, of bf16 products over 20 steps against fp32."""


def _case(kind: str) -> tuple[Cell, torch.Tensor, State]:
    torch.manual_seed(0)
    cell = make_cell(kind, input_size=32, hidden_size=64)
    return cell, torch.randn(8, 20, 32), cell.init_state(8).map(torch.randn_like)


@pytest.mark.parametrize("kind", CELLS)
def test_nothing_at_or_before_a_step_moves_with_a_later_input(kind: str) -> None:
    cell, x, state = _case(kind)
    before, _ = cell.sequence(x, state)
    for t in (1, 7, 19):
        changed = x.clone()
        changed[:, t] += 1
        after, _ = cell.sequence(changed, state)
        assert torch.equal(before[:, :t], after[:, :t])
        assert not torch.equal(before[:, t], after[:, t])


@pytest.mark.parametrize("kind", CELLS)
def test_gradients_in_bf16_are_close_to_fp32(kind: str) -> None:
    cell, x, state = _case(kind)

    def gradients() -> list[torch.Tensor]:
        output, after = cell.sequence(x, state)
        loss = output.float().square().mean() + sum(tensor.mean() for tensor in after.values())
        return list(torch.autograd.grad(loss, list(cell.parameters())))

    expected = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients()
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < BF16_BOUND * other.norm()


@pytest.mark.parametrize("kind", CELLS)
def test_weights_and_state_from_files_go_on_bit_by_bit(kind: str, tmp_path: Path) -> None:
    cell, x, state = _case(kind)
    _, state = cell.sequence(x[:, :12], state)
    save_file(cell.state_dict(), tmp_path / "weights")
    save_file(state.map(torch.Tensor.contiguous).tensors(), tmp_path / "state")
    torch.manual_seed(1)
    again = make_cell(kind, input_size=32, hidden_size=64)
    again.load_state_dict(load_file(tmp_path / "weights"))
    expected, after = cell.sequence(x[:, 12:], state)
    found, last = again.sequence(x[:, 12:], State.from_tensors(load_file(tmp_path / "state")))
    assert torch.equal(found, expected)
    assert all(torch.equal(last[name], after[name]) for name in after)


@pytest.mark.parametrize("kind", [name for name, each in CELLS.items() if issubclass(each, RecurrentCell)])
def test_dropped_weights_neither_act_nor_learn(kind: str) -> None:
    cell, x, state = _case(kind)
    assert isinstance(cell, RecurrentCell)
    mask = (torch.rand_like(cell.weight_hh) > 0.5).float() * 2
    output, _ = cell.sequence(x, state, recurrent_mask_GH=mask)
    output.sum().backward()
    assert torch.equal(cell.weight_hh.grad == 0, mask == 0)
    with torch.no_grad():
        cell.weight_hh.mul_(mask)
    expected, _ = cell.sequence(x, state)
    assert torch.equal(output, expected)


def test_dropped_weights_reach_the_kernel_for_wide_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the CPU has no instructions for bf16, in which its products are then computed all the same."""
    cell, x, state = _case("lstm")
    assert isinstance(cell, LstmCell)
    mask = (torch.rand_like(cell.weight_hh) > 0.5).float() * 2
    given = []
    monkeypatch.setattr(cells, "WIDE", 64)
    monkeypatch.setattr(cells, "has_bf16", lambda: True)
    monkeypatch.setattr(cells, "lstm_window", lambda *inputs: given.append(inputs) or lstm_window(*inputs))
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = cell.sequence(x, state, recurrent_mask_GH=mask)
    output.float().sum().backward()
    ((*_, weight, _bias),) = given
    assert torch.equal(weight, (cell.weight_hh * mask).to(torch.bfloat16))
    assert torch.equal(cell.weight_hh.grad == 0, mask == 0)
