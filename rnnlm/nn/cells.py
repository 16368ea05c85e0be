"""Recurrent layers: one layer, one direction, the same numbers for a whole window and for single steps.

Shapes: B batch, T time, X input size, H hidden size, G gates.

Here are the contract and the cells whose gates read the last output, so that a window has to be computed step by step. It
goes through torch's fused kernel (oneDNN for an LSTM on a CPU, cuDNN on a GPU) or, for a wide LSTM in bf16 on a CPU, through
`rnnlm.nn.lstm_kernel`; a step is two matrix products. The fused kernels want two biases, of which one is enough: the second
is a buffer of zeros, but for a part of the GRU's. Cells without that dependence are in `rnnlm.nn.scan_cells`.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from rnnlm.nn.lstm_kernel import lstm_window
from rnnlm.nn.products import has_bf16
from rnnlm.nn.state import State


class Cell(nn.Module):
    """A recurrent layer, and the contract of all of them.

    Tensors that come out of `sequence` have their time dimension outermost in memory, which is what the kernels work
    on: a stack of cells copies nothing between its layers.

    Args:
        input_size: X, width of the input.
        hidden_size: H, width of the hidden state and of the output.
    """

    num_gates: ClassVar[int]
    state_names: ClassVar[tuple[str, ...]]
    """The carried tensors."""

    def __init__(self, *, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draw initial weights."""

    @property
    def state_sizes(self) -> dict[str, int]:
        """Width of each carried tensor, which is [B, width]."""
        return dict.fromkeys(self.state_names, self.hidden_size)

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Zeros; on the device and in the type of the weights where none is given."""
        weight = next(self.parameters())
        sizes = self.state_sizes.items()
        return State({name: weight.new_zeros(batch_size, size, device=device, dtype=dtype) for name, size in sizes})

    @abstractmethod
    def sequence(self, x_BTX: Tensor, state: State) -> tuple[Tensor, State]:
        """Run over a window.

        Returns:
            The outputs [B, T, H], and the state after the last step.
        """

    @abstractmethod
    def step(self, x_BX: Tensor, state: State) -> tuple[Tensor, State]:
        """Run one step: what `sequence` does with T = 1, without the cost of a window.

        Returns:
            The output [B, H], and the state after the step.
        """

    def extra_repr(self) -> str:
        """The sizes, for printing a model."""
        return f"input_size={self.input_size}, hidden_size={self.hidden_size}"


class Cells(nn.ModuleList):
    """A list of cells whose members are known to be cells."""

    def __iter__(self) -> Iterator[Cell]:
        return cast("Iterator[Cell]", super().__iter__())


class RecurrentCell(Cell):
    """A cell whose gates read its last output through `weight_hh`."""

    _cudnn_mode: ClassVar[int]

    def __init__(self, *, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size=input_size, hidden_size=hidden_size)
        rows = self.num_gates * hidden_size
        self.weight_xh = nn.Parameter(torch.empty(rows, input_size))
        self.weight_hh = nn.Parameter(torch.empty(rows, hidden_size))
        self.bias_h = nn.Parameter(torch.empty(rows))
        self.second_bias: Tensor
        self.register_buffer("second_bias", torch.zeros(rows), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw initial weights: input uniform within 1/sqrt(H), recurrence orthogonal gate by gate, bias zero."""
        bound = 1 / math.sqrt(self.hidden_size)
        self.weight_xh.uniform_(-bound, bound)
        for gate_HH in self.weight_hh.view(self.num_gates, self.hidden_size, self.hidden_size):
            nn.init.orthogonal_(gate_HH)
        self.bias_h.zero_()

    def _second_bias(self) -> Tensor:
        """The bias that torch's kernels add to the recurrent product."""
        return self.second_bias

    @abstractmethod
    def sequence(self, x_BTX: Tensor, state: State, *, recurrent_mask_GH: Tensor | None = None) -> tuple[Tensor, State]:
        """Run over a window.

        Args:
            x_BTX: input.
            state: before the window.
            recurrent_mask_GH: what `weight_hh` is multiplied by, element by element, for this window (weight drop).

        Returns:
            The outputs [B, T, H], and the state after the last step.
        """

    def _weights(self, recurrent_mask_GH: Tensor | None) -> list[Tensor]:
        """The weights in the order of torch's kernels."""
        weights: list[Tensor] = [self.weight_xh, self.weight_hh, self.bias_h, self._second_bias()]
        if self.weight_xh.is_cuda and self.weight_xh.untyped_storage() != self.weight_hh.untyped_storage():
            # cuDNN reads one block of memory; where the weights are scattered it gathers them anew at every call. They move
            # there at the first one, whatever it is for: a recorded graph reads them where they were when it was recorded.
            with torch.no_grad():
                torch._cudnn_rnn_flatten_weight(
                    weights, 4, self.input_size, self._cudnn_mode, self.hidden_size, 0, 1, True, False
                )
        if recurrent_mask_GH is not None:
            weights[1] = self.weight_hh * recurrent_mask_GH
        return weights

    def _preactivation(self, x_BX: Tensor, hidden_BH: Tensor) -> Tensor:
        gates_BG = nn.functional.linear(x_BX, self.weight_xh, self.bias_h)
        return gates_BG + nn.functional.linear(hidden_BH.to(gates_BG.dtype), self.weight_hh)


WIDE = 512
"""From so many units on `rnnlm.nn.lstm_kernel` is faster than oneDNN's LSTM in bf16, whose backward pass is slow there."""


class ElmanCell(RecurrentCell):
    r"""The simple recurrent network of Elman, "Finding Structure in Time" (1990).

        h_t = tanh(W_hh h_{t-1} + W_xh x_t + b_h)
        y_t = W_hy h_t + b_y

    with W_xh `weight_xh`, W_hh `weight_hh` and b_h `bias_h`. The second line is a model's output layer.
    """

    num_gates = 1
    state_names = ("hidden",)
    _cudnn_mode = 1

    def sequence(self, x_BTX: Tensor, state: State, *, recurrent_mask_GH: Tensor | None = None) -> tuple[Tensor, State]:
        """Run over a window."""
        hidden_BH = state["hidden"]
        output_BTH, last = torch._VF.rnn_tanh(
            x_BTX, hidden_BH[None], self._weights(recurrent_mask_GH), True, 1, 0.0, torch.is_grad_enabled(), False, True
        )
        return output_BTH, State({"hidden": last[0].to(hidden_BH.dtype)})

    def step(self, x_BX: Tensor, state: State) -> tuple[Tensor, State]:
        """Run one step."""
        output_BH = torch.tanh(self._preactivation(x_BX, state["hidden"]))
        return output_BH, State({"hidden": output_BH.to(state["hidden"].dtype)})


class LstmCell(RecurrentCell):
    r"""Long short-term memory (Hochreiter and Schmidhuber 1997) with a forget gate (Gers et al. 2000).

        i_t = sigmoid(W_xi x_t + W_hi h_{t-1} + b_i)        input gate
        f_t = sigmoid(W_xf x_t + W_hf h_{t-1} + b_f)        forget gate
        g_t = tanh(W_xg x_t + W_hg h_{t-1} + b_g)           candidate
        o_t = sigmoid(W_xo x_t + W_ho h_{t-1} + b_o)        output gate
        c_t = f_t * c_{t-1} + i_t * g_t
        h_t = o_t * tanh(c_t)

    `weight_xh`, `weight_hh` and `bias_h` hold the gates one below the other in the order i, f, g, o, as torch does.
    b_f starts at 1, so that memory is kept before the network has learnt what to forget (Jozefowicz et al. 2015).
    """

    num_gates = 4
    state_names = ("hidden", "cell")
    _cudnn_mode = 2

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As every cell; the forget gate's bias is 1."""
        super().reset_parameters()
        self.bias_h[self.hidden_size : 2 * self.hidden_size] = 1.0

    def sequence(self, x_BTX: Tensor, state: State, *, recurrent_mask_GH: Tensor | None = None) -> tuple[Tensor, State]:
        """Run over a window."""
        hidden_BH, cell_BH = state["hidden"], state["cell"]
        if x_BTX.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            if not has_bf16():
                with torch.autocast("cpu", enabled=False):
                    return self.sequence(x_BTX.float(), state, recurrent_mask_GH=recurrent_mask_GH)
            if self.hidden_size >= WIDE:
                weights = [weight.to(torch.bfloat16) for weight in self._weights(recurrent_mask_GH)[:3]]
                output_BTH, hidden_BH, cell_BH = lstm_window(x_BTX, hidden_BH, cell_BH, *weights)
                return output_BTH, State({"hidden": hidden_BH, "cell": cell_BH})
        output_BTH, last, last_cell = torch._VF.lstm(
            x_BTX,
            (hidden_BH[None], cell_BH[None]),
            self._weights(recurrent_mask_GH),
            True,
            1,
            0.0,
            torch.is_grad_enabled(),
            False,
            True,
        )
        return output_BTH, State({"hidden": last[0].to(hidden_BH.dtype), "cell": last_cell[0].to(cell_BH.dtype)})

    def step(self, x_BX: Tensor, state: State) -> tuple[Tensor, State]:
        """Run one step."""
        gates_BG = self._preactivation(x_BX, state["hidden"])
        i_BH, f_BH, g_BH, o_BH = gates_BG.chunk(4, dim=1)
        kept_BH = torch.sigmoid(f_BH) * state["cell"]
        cell_BH = torch.addcmul(kept_BH, torch.sigmoid(i_BH), torch.tanh(g_BH))
        output_BH = torch.sigmoid(o_BH) * torch.tanh(cell_BH)
        return output_BH, State(
            {"hidden": output_BH.to(state["hidden"].dtype), "cell": cell_BH.to(state["cell"].dtype)}
        )


class GruCell(RecurrentCell):
    r"""Gated recurrent unit (Cho et al. 2014), with the reset gate behind the recurrent product, as in cuDNN and torch.

        r_t = sigmoid(W_xr x_t + W_hr h_{t-1} + b_r)               reset gate
        z_t = sigmoid(W_xz x_t + W_hz h_{t-1} + b_z)               update gate
        n_t = tanh(W_xn x_t + b_n + r_t * (W_hn h_{t-1} + d_n))    candidate
        h_t = (1 - z_t) * n_t + z_t * h_{t-1}

    `weight_xh`, `weight_hh` and `bias_h` hold the gates one below the other in the order r, z, n, as torch does;
    `bias_n` is d_n.
    """

    num_gates = 3
    state_names = ("hidden",)
    _cudnn_mode = 3

    def __init__(self, *, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size=input_size, hidden_size=hidden_size)
        self.bias_n = nn.Parameter(torch.zeros(hidden_size))

    def _second_bias(self) -> Tensor:
        return torch.cat([self.second_bias[: 2 * self.hidden_size], self.bias_n])

    def sequence(self, x_BTX: Tensor, state: State, *, recurrent_mask_GH: Tensor | None = None) -> tuple[Tensor, State]:
        """Run over a window."""
        hidden_BH = state["hidden"]
        output_BTH, last = torch._VF.gru(
            x_BTX, hidden_BH[None], self._weights(recurrent_mask_GH), True, 1, 0.0, torch.is_grad_enabled(), False, True
        )
        return output_BTH, State({"hidden": last[0].to(hidden_BH.dtype)})

    def step(self, x_BX: Tensor, state: State) -> tuple[Tensor, State]:
        """Run one step."""
        hidden_BH = state["hidden"]
        input_BG = nn.functional.linear(x_BX, self.weight_xh, self.bias_h)
        recurrent_BG = nn.functional.linear(hidden_BH.to(input_BG.dtype), self.weight_hh, self._second_bias())
        gates = 2 * self.hidden_size
        r_BH, z_BH = torch.sigmoid(input_BG[:, :gates] + recurrent_BG[:, :gates]).chunk(2, dim=1)
        n_BH = torch.tanh(input_BG[:, gates:] + r_BH * recurrent_BG[:, gates:])
        output_BH = torch.lerp(n_BH, hidden_BH.to(n_BH.dtype), z_BH)
        return output_BH, State({"hidden": output_BH.to(hidden_BH.dtype)})
