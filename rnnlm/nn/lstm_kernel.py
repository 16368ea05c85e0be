"""An LSTM over a window for CPUs with bf16 instructions: one autograd node, few large products.

Shapes: T time, B batch, X input size, H hidden size, G = 4 H gates, P = T B steps or, in bf16, a few more rows.

What differs from step-by-step autograd, and from oneDNN's LSTM, whose backward pass is slow for wide layers:

- the input's product is one for the whole window, and so are the gradients of both weights and of the input;
- bf16 weights of the recurrence are brought into the layout of oneDNN's products once a window, not at every step;
- of the backward pass what does not depend on later steps is computed for some steps at once, as many as stay in the cache;
- tanh(x) = 2 sigmoid(2 x) - 1, as sigmoid is several times faster; the candidate's weights are doubled once a window, and cells
  and candidates are carried doubled, C = 2 c and G = 2 g, so that no step has to double them.

Products, with the bias in that of the input, are in the type of the weights; what is between them, the cell state included, is
in fp32 (or fp64), but for the sum of a step's two gradients from above and from later.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rnnlm.nn.products import has_bf16
from rnnlm.nn.shapes import padded, product_rows

CHUNK_ELEMENTS = 1 << 15
"""Values [t, B, H] of some steps that the backward pass prepares at a time."""


class _SameProduct:
    """x W^T by one matrix many times. In bf16 it is packed for oneDNN, which otherwise does so in each product."""

    def __init__(self, weight_OI: Tensor, rows: int) -> None:
        self._transposed_IO = weight_OI.t()
        self._packed: Tensor | None = None
        if weight_OI.dtype == torch.bfloat16 and has_bf16():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), rows)

    def __call__(self, x_BI: Tensor) -> Tensor:
        """[B, O]."""
        if self._packed is None:
            return x_BI @ self._transposed_IO
        return torch.ops.mkldnn._linear_pointwise(x_BI, self._packed, None, "none", [None], "")  # type: ignore[no-any-return]

    def plus(self, x_BI: Tensor, other_BO: Tensor) -> Tensor:
        """The product and another term, [B, O]."""
        if self._packed is None:
            return torch.addmm(other_BO, x_BI, self._transposed_IO)
        return torch.ops.mkldnn._linear_pointwise.binary(x_BI, other_BO, self._packed, None, "add")  # type: ignore[no-any-return]


class _Window(torch.autograd.Function):
    """The LSTM of `rnnlm.nn.cells.LstmCell`, with gradients for the state before the window."""

    @staticmethod
    def forward(
        ctx: Any, x_TBX: Tensor, h_BH: Tensor, c_BH: Tensor, weight_xh_GX: Tensor, weight_hh_GH: Tensor, bias_G: Tensor
    ) -> tuple[Tensor, Tensor]:
        steps, batch, _ = x_TBX.shape
        size = weight_hh_GH.shape[1]
        kind = torch.promote_types(weight_hh_GH.dtype, torch.float32)
        double_G = bias_G.new_ones(4, size)
        double_G[2] = 2
        double_G = double_G.view(-1)
        recurrence = _SameProduct(weight_hh_GH * double_G[:, None], batch)
        gates_PG = torch.addmm(bias_G * double_G, _all_rows(x_TBX), (weight_xh_GX * double_G[:, None]).t())
        gates_TBG = gates_PG[: steps * batch].view(steps, batch, -1)
        hidden_TBH = x_TBX.new_empty(steps + 1, batch, size)
        doubled_TBH = torch.empty(steps + 1, batch, size, dtype=kind)
        tanh_TBH = torch.empty(steps, batch, size, dtype=kind)
        open_TBG = torch.empty(steps, batch, 4, size, dtype=kind)
        hidden_TBH[0] = h_BH
        torch.mul(c_BH, 2, out=doubled_TBH[0])
        flat_TBG = open_TBG.view(steps, batch, -1)
        minus_one, minus_two = (torch.tensor(value, dtype=kind) for value in (-1.0, -2.0))
        for t in range(steps):
            flat_TBG[t].copy_(recurrence.plus(hidden_TBH[t], gates_TBG[t])).sigmoid_()
            i_BH, f_BH, g_BH, o_BH = open_TBG[t].unbind(1)
            torch.add(minus_two, g_BH, alpha=4, out=g_BH)
            torch.mul(f_BH, doubled_TBH[t], out=doubled_TBH[t + 1]).addcmul_(i_BH, g_BH)
            tanh_BH = torch.sigmoid(doubled_TBH[t + 1], out=tanh_TBH[t])
            torch.add(minus_one, tanh_BH, alpha=2, out=tanh_BH)
            torch.mul(o_BH, tanh_BH, out=hidden_TBH[t + 1])
        ctx.save_for_backward(x_TBX, hidden_TBH, doubled_TBH, tanh_TBH, open_TBG, weight_xh_GX, weight_hh_GH)
        return hidden_TBH[1:], (doubled_TBH[-1] / 2).to(c_BH.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh_TBH: Tensor, dc_BH: Tensor) -> tuple[Tensor | None, ...]:
        x_TBX, hidden_TBH, doubled_TBH, tanh_TBH, open_TBG, weight_xh_GX, weight_hh_GH = ctx.saved_tensors
        steps, batch, size = tanh_TBH.shape
        recurrence = _SameProduct(weight_hh_GH.t(), batch)
        flat_PG = weight_hh_GH.new_empty(product_rows(steps * batch, weight_hh_GH.dtype, x_TBX.device), 4 * size)
        flat_PG[steps * batch :] = 0
        dgates_TBG = flat_PG[: steps * batch].view(steps, batch, 4, size)
        kind = tanh_TBH.dtype
        ddoubled_BH = dc_BH.to(kind) / 2
        sum_BG = torch.zeros_like(open_TBG[0])
        later_BH = dh_TBH.new_zeros(batch, size)
        chunk = max(1, CHUNK_ELEMENTS // (batch * size))
        for stop in range(steps, 0, -chunk):
            start = max(0, stop - chunk)
            slope_tBG, through_tBH = _slopes(open_TBG[start:stop], doubled_TBH[start:stop], tanh_TBH[start:stop])
            for t in range(stop - 1, start - 1, -1):
                dh_BH = (later_BH + dh_TBH[t]).to(kind)
                ddoubled_BH.addcmul_(dh_BH, through_tBH[t - start])
                slope_BG = slope_tBG[t - start]
                slope_BG[:, :3] *= ddoubled_BH[:, None]
                slope_BG[:, 3] *= dh_BH
                dgates_TBG[t] = slope_BG
                sum_BG += slope_BG
                ddoubled_BH *= open_TBG[t, :, 1]
                later_BH = recurrence(dgates_TBG[t].view(batch, -1))
        needs = ctx.needs_input_grad
        dx_TBX = torch.mm(flat_PG, weight_xh_GX)[: steps * batch].view(steps, batch, -1) if needs[0] else None
        return (
            dx_TBX,
            later_BH,
            2 * ddoubled_BH,
            torch.mm(flat_PG.t(), _all_rows(x_TBX)) if needs[3] else None,
            torch.mm(flat_PG.t(), _all_rows(hidden_TBH[:-1])) if needs[4] else None,
            sum_BG.sum(0).view(-1) if needs[5] else None,
        )


def _all_rows(x_TBX: Tensor) -> Tensor:
    """All steps below each other, [T B, X], and perhaps zeros below them."""
    x_NX = x_TBX.reshape(-1, x_TBX.shape[2])
    return padded(x_NX, product_rows(x_NX.shape[0], x_NX.dtype, x_NX.device))


def _slopes(open_tBG: Tensor, before_tBH: Tensor, tanh_tBH: Tensor) -> tuple[Tensor, Tensor]:
    """What the gradients of C_t, for the last gate of h_t, are multiplied by on their way to the gates [t, B, 4, H], and
    that of h_t on its way to C_t [t, B, H]. Of the gates the candidate is given doubled, as is the cell before.
    """
    i_tBH, _, g_tBH, o_tBH = open_tBG.unbind(2)
    half, two = (torch.tensor(value, dtype=tanh_tBH.dtype) for value in (0.5, 2.0))
    slope_tBG = torch.addcmul(open_tBG, open_tBG, open_tBG, value=-1)
    slope_tBG[:, :, 0] *= g_tBH
    slope_tBG[:, :, 1] *= before_tBH
    slope_tBG[:, :, 3] *= tanh_tBH
    # 2 i (1 - g^2)
    torch.addcmul(two, g_tBH, g_tBH, value=-0.5, out=slope_tBG[:, :, 2]).mul_(i_tBH)
    return slope_tBG, torch.addcmul(half, tanh_tBH, tanh_tBH, value=-0.5).mul_(o_tBH)


def lstm_window(
    x_BTX: Tensor, h_BH: Tensor, c_BH: Tensor, weight_xh_GX: Tensor, weight_hh_GH: Tensor, bias_G: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """An LSTM over a window of at least one step, on a CPU.

    Args:
        x_BTX: input; no copy is made where time is outermost in memory.
        h_BH: hidden state before the window.
        c_BH: cell state before it.
        weight_xh_GX: weights in the order i, f, g, o, in the type in which products are computed.
        weight_hh_GH: likewise.
        bias_G: likewise.

    Returns:
        Outputs [B, T, H] in the type of the weights, and both states after the window in the types of those before it.
    """
    kind = weight_hh_GH.dtype
    output_TBH, last_BH = _Window.apply(x_BTX.transpose(0, 1).to(kind), h_BH, c_BH, weight_xh_GX, weight_hh_GH, bias_G)
    return output_TBH.transpose(0, 1), output_TBH[-1].to(h_BH.dtype), last_BH
