"""What language models and decoders share: a stack of cells, and the places where dropout acts."""

from typing import Literal

import torch
from torch import Tensor, nn

from rnnlm.nn.cells import Cell, Cells, ElmanCell, LstmCell
from rnnlm.nn.state import State

CellKind = Literal["elman", "lstm"]


def make_cell(kind: CellKind, *, input_size: int, hidden_size: int) -> Cell:
    """A cell of the named kind."""
    match kind:
        case "elman":
            return ElmanCell(input_size=input_size, hidden_size=hidden_size)
        case "lstm":
            return LstmCell(input_size=input_size, hidden_size=hidden_size)


def init_state(cells: Cells, batch_size: int) -> State:
    """Zeros for a stack of cells."""
    return State.join([cell.init_state(batch_size) for cell in cells])


def time_major(x_BTX: Tensor) -> Tensor:
    """The rows [T * B, X]: no copy where time is outermost in memory, as the cells leave it."""
    return x_BTX.transpose(0, 1).reshape(-1, x_BTX.shape[2])


def zero_loss(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Loss of an empty share: zero, with zero gradients for every parameter, so that a worker takes part in sums."""
    total = torch.stack([parameter.sum() * 0 for parameter in module.parameters()]).sum()
    return total, total.detach().double()
