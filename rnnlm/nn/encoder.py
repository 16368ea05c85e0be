"""A bidirectional encoder without packed sequences.

The second direction runs over the rows turned round inside their lengths, so that padding stays behind the end in both
directions and can never reach a real position.

Shapes: B batch, S source length, X input size, H hidden size of a direction, M = 2 H.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rnnlm.nn.cells import Cell, Cells
from rnnlm.nn.dropout import MaskContext, locked_dropout


class Reversal:
    """Turns each row round inside its length and leaves its padding where it is. Applied twice it changes nothing.

    Args:
        lengths_B: real positions of each row.
        length: S, positions of the batch.
    """

    def __init__(self, lengths_B: Tensor, length: int) -> None:
        time_S1 = torch.arange(length, device=lengths_B.device)[:, None]
        turned_SB = torch.where(time_S1 < lengths_B, lengths_B - 1 - time_S1, time_S1)
        batch_size = lengths_B.shape[0]
        self._index_N = (turned_SB * batch_size + torch.arange(batch_size, device=lengths_B.device)).reshape(-1)

    def __call__(self, x_BSX: Tensor) -> Tensor:
        """Turn rows of vectors, leaving time outermost in memory."""
        x_SBX = x_BSX.transpose(0, 1)
        turned: Tensor = _Permute.apply(x_SBX.reshape(-1, x_BSX.shape[2]), self._index_N)
        return turned.view(x_SBX.shape).transpose(0, 1)


class _Permute(torch.autograd.Function):
    """Rows by a permutation that is its own inverse, so that the gradient is a lookup too, not a slow scattered sum."""

    @staticmethod
    def forward(ctx: Any, x_NX: Tensor, index_N: Tensor) -> Tensor:
        ctx.save_for_backward(index_N)
        return x_NX.index_select(0, index_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NX: Tensor) -> tuple[Tensor, None]:
        (index_N,) = ctx.saved_tensors
        return grad_NX.index_select(0, index_N), None


def join_features(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate [B, T, ...] along the features, with time outermost in memory."""
    return torch.cat([part.transpose(0, 1) for part in parts], dim=-1).transpose(0, 1)


class BidirectionalEncoder(nn.Module):
    """Layers of two cells, one for each direction; a layer reads both directions of the layer below.

    Args:
        layers: the pair (forward, backward) of each layer, the lowest first.
        dropout: share of features dropped between layers.
        first_site: number of the place of the lowest dropout; each layer above takes the next.
    """

    def __init__(self, layers: Sequence[tuple[Cell, Cell]], *, dropout: float, first_site: int) -> None:
        super().__init__()
        self.forward_cells = Cells(pair[0] for pair in layers)
        self.backward_cells = Cells(pair[1] for pair in layers)
        self.dropout = dropout
        self.first_site = first_site

    def forward(self, x_BSX: Tensor, lengths_B: Tensor, masks: MaskContext | None = None) -> tuple[Tensor, Tensor]:
        """Encode.

        Returns:
            The top layer's states [B, S, M], finite but meaningless behind a row's end, and a summary [B, M]: the last
            state of each direction.
        """
        batch_size, length, _ = x_BSX.shape
        reverse = Reversal(lengths_B, length)
        for layer, (ahead, back) in enumerate(zip(self.forward_cells, self.backward_cells, strict=True)):
            if layer:
                x_BSX = locked_dropout(x_BSX, self.dropout, masks, self.first_site + layer)
            ahead_BSH, _ = ahead.sequence(x_BSX, ahead.init_state(batch_size))
            turned_BSH, _ = back.sequence(reverse(x_BSX), back.init_state(batch_size))
            back_BSH = reverse(turned_BSH)
            x_BSX = join_features([ahead_BSH, back_BSH])
        rows_B = torch.arange(batch_size, device=x_BSX.device)
        return x_BSX, torch.cat([ahead_BSH[rows_B, lengths_B - 1], back_BSH[:, 0]], dim=-1)
