"""Recurrent layers whose gates do not read the last output: one matrix product for a window, then a linear scan.

Shapes: B batch, T time, X input size, H hidden size, G gates.
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from rnnlm.nn.cells import Cell
from rnnlm.nn.scan import linear_scan
from rnnlm.nn.state import State


class _MinimalCell(Cell):
    """A cell with one state, h_t = k_t * h_{t-1} + a_t, of which k and a depend on x_t alone."""

    state_names = ("hidden",)

    def __init__(self, *, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size=input_size, hidden_size=hidden_size)
        rows = self.num_gates * hidden_size
        self.weight_xh = nn.Parameter(torch.empty(rows, input_size))
        self.bias_h = nn.Parameter(torch.empty(rows))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights uniform within sqrt(3 / X), which keeps unit variance; each unit keeps its state for a time of its own: s
        steps on average, with s evenly from 1 to 100 on a logarithmic scale; in a minimal LSTM 0.98 (1 + s).
        """
        bound = math.sqrt(3 / self.input_size)
        self.weight_xh.uniform_(-bound, bound)
        self.bias_h.zero_()
        steps_H = torch.logspace(0, 2, self.hidden_size)
        self._set_memory(torch.log(steps_H))

    @abstractmethod
    def _set_memory(self, log_steps_H: Tensor) -> None:
        """Set biases that decide, from log s, which part of h is lost in a step at an input of zero."""

    @abstractmethod
    def _maps(self, gates_G: Tensor) -> tuple[Tensor, Tensor]:
        """K and a [..., H] from the preactivations [..., G]."""

    def _preactivation(self, x_X: Tensor) -> Tensor:
        gates_G = nn.functional.linear(x_X, self.weight_xh, self.bias_h)
        # Many small changes add up in the state: it is kept in fp32 even if products are in bf16.
        return gates_G.to(torch.promote_types(gates_G.dtype, torch.float32))

    def sequence(self, x_BTX: Tensor, state: State) -> tuple[Tensor, State]:
        """Run over a window."""
        hidden_BH = state["hidden"]
        keep_TBH, add_TBH = self._maps(self._preactivation(x_BTX.transpose(0, 1)))
        output_TBH = linear_scan(keep_TBH, add_TBH, hidden_BH.to(add_TBH.dtype))
        return output_TBH.transpose(0, 1), State({"hidden": output_TBH[-1].to(hidden_BH.dtype)})

    def step(self, x_BX: Tensor, state: State) -> tuple[Tensor, State]:
        """Run one step."""
        keep_BH, add_BH = self._maps(self._preactivation(x_BX))
        output_BH = torch.addcmul(add_BH, keep_BH, state["hidden"].to(add_BH.dtype))
        return output_BH, State({"hidden": output_BH.to(state["hidden"].dtype)})


class MinGruCell(_MinimalCell):
    r"""The minimal GRU of Feng et al., "Were RNNs All We Needed?" (2024), section 3.1, https://arxiv.org/abs/2410.01201.

        z_t = sigmoid(W_z x_t + b_z)
        n_t = W_n x_t + b_n
        h_t = (1 - z_t) * h_{t-1} + z_t * n_t

    `weight_xh` and `bias_h` hold z, then n.
    """

    num_gates = 2

    def _set_memory(self, log_steps_H: Tensor) -> None:
        """One part in 1 + s is lost."""
        self.bias_h[: self.hidden_size] = -log_steps_H

    def _maps(self, gates_G: Tensor) -> tuple[Tensor, Tensor]:
        z_H, n_H = gates_G.chunk(2, dim=-1)
        return torch.sigmoid(-z_H), torch.sigmoid(z_H) * n_H


class MinLstmCell(_MinimalCell):
    r"""The minimal LSTM of Feng et al., "Were RNNs All We Needed?" (2024), section 3.2, https://arxiv.org/abs/2410.01201.

        f_t = sigmoid(W_f x_t + b_f)
        i_t = sigmoid(W_i x_t + b_i)
        n_t = W_n x_t + b_n
        h_t = (f_t * h_{t-1} + i_t * n_t) / (f_t + i_t)

    `weight_xh` and `bias_h` hold f, i, n. The quotient f / (f + i) is computed as a sigmoid of log f - log i, so that it
    exists where both gates are shut.
    """

    num_gates = 3

    def _set_memory(self, log_steps_H: Tensor) -> None:
        """One part in 1 + 0.98 (1 + s) is lost: f is 0.98, and i is 1 / (1 + s)."""
        # With i = 1/2, f / (f + i) can be two thirds at most: shut the input gate instead, and leave f open.
        self.bias_h[: self.hidden_size] = 4.0
        self.bias_h[self.hidden_size : 2 * self.hidden_size] = -log_steps_H

    def _maps(self, gates_G: Tensor) -> tuple[Tensor, Tensor]:
        f_H, i_H, n_H = gates_G.chunk(3, dim=-1)
        odds_H = nn.functional.logsigmoid(f_H) - nn.functional.logsigmoid(i_H)
        return torch.sigmoid(odds_H), torch.sigmoid(-odds_H) * n_H


class QrnnCell(Cell):
    r"""The quasi-recurrent network of Bradbury et al. (2016), window of two, fo-pooling, https://arxiv.org/abs/1611.01576.

        n_t = tanh(W_n x_t + V_n x_{t-1} + b_n)
        f_t = sigmoid(W_f x_t + V_f x_{t-1} + b_f)
        o_t = sigmoid(W_o x_t + V_o x_{t-1} + b_o)
        c_t = f_t * c_{t-1} + (1 - f_t) * n_t
        h_t = o_t * c_t

    `weight_xh` [3 H, 2 X] holds n, f, o one below the other, and in a row first V, then W. The state is c [B, H] and the
    last input [B, X].
    """

    num_gates = 3
    state_names = ("cell", "input")

    def __init__(self, *, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size=input_size, hidden_size=hidden_size)
        self.weight_xh = nn.Parameter(torch.empty(3 * hidden_size, 2 * input_size))
        self.bias_h = nn.Parameter(torch.empty(3 * hidden_size))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights uniform within sqrt(3 / 2X); the forget gate starts at a bias of 1."""
        bound = math.sqrt(3 / (2 * self.input_size))
        self.weight_xh.uniform_(-bound, bound)
        self.bias_h.zero_()
        self.bias_h[self.hidden_size : 2 * self.hidden_size] = 1.0

    @property
    def state_sizes(self) -> dict[str, int]:
        """The cell is as wide as the output, the last input as the input."""
        return {"cell": self.hidden_size, "input": self.input_size}

    def sequence(self, x_BTX: Tensor, state: State) -> tuple[Tensor, State]:
        """Run over a window."""
        x_TBX = x_BTX.transpose(0, 1)
        before_TBX = torch.cat([state["input"][None].to(x_TBX.dtype), x_TBX[:-1]])
        keep_TBH, add_TBH, open_TBH = self._gates(before_TBX, x_TBX)
        cell_TBH = linear_scan(keep_TBH, add_TBH, state["cell"].to(add_TBH.dtype))
        return (open_TBH * cell_TBH).transpose(0, 1), self._after(cell_TBH[-1], x_TBX[-1], state)

    def step(self, x_BX: Tensor, state: State) -> tuple[Tensor, State]:
        """Run one step."""
        keep_BH, add_BH, open_BH = self._gates(state["input"].to(x_BX.dtype), x_BX)
        cell_BH = torch.addcmul(add_BH, keep_BH, state["cell"].to(add_BH.dtype))
        return open_BH * cell_BH, self._after(cell_BH, x_BX, state)

    def _gates(self, before_X: Tensor, x_X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """K and a of the scan, and the output gate."""
        gates_G = nn.functional.linear(torch.cat([before_X, x_X], -1), self.weight_xh, self.bias_h)
        n_H, f_H, o_H = gates_G.to(torch.promote_types(gates_G.dtype, torch.float32)).chunk(3, dim=-1)
        return torch.sigmoid(f_H), torch.sigmoid(-f_H) * torch.tanh(n_H), torch.sigmoid(o_H)

    def _after(self, cell_BH: Tensor, x_BX: Tensor, state: State) -> State:
        return State({"cell": cell_BH.to(state["cell"].dtype), "input": x_BX.to(state["input"].dtype)})
