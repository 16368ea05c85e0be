"""What language models and decoders share: a stack of cells, and the places where dropout acts."""

import torch
from torch import Tensor, nn

from rnnlm.models.config import CellKind
from rnnlm.nn.cells import Cell, Cells, ElmanCell, GruCell, LstmCell
from rnnlm.nn.scan_cells import MinGruCell, MinLstmCell, QrnnCell
from rnnlm.nn.state import State

CELLS: dict[CellKind, type[Cell]] = {
    "elman": ElmanCell,
    "gru": GruCell,
    "lstm": LstmCell,
    "mingru": MinGruCell,
    "minlstm": MinLstmCell,
    "qrnn": QrnnCell,
}


def make_cell(kind: CellKind, *, input_size: int, hidden_size: int) -> Cell:
    """A cell of the named kind."""
    return CELLS[kind](input_size=input_size, hidden_size=hidden_size)


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
