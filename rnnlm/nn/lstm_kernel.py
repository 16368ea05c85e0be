"""An LSTM over a window for CPUs with bf16 instructions: one autograd node, few large products.

Shapes: T time, B batch, X input size, H hidden size, G = 4 H gates.

What differs from step-by-step autograd, and from oneDNN's LSTM, whose backward pass is slow for wide layers:

- the input's product is one for the whole window, and so are the gradients of both weights and of the input;
- of the backward pass everything that does not depend on later steps is computed for all steps at once;
- tanh(x) = 2 sigmoid(2 x) - 1, as sigmoid is several times faster; the candidate's weights are doubled once a window.

Products are in the type of the weights, everything between them, the cell state included, in fp32 (or fp64).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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
        recurrent_HG = (weight_hh_GH * double_G[:, None]).t()
        gates_TBG = torch.addmm(
            bias_G * double_G, x_TBX.reshape(steps * batch, -1), (weight_xh_GX * double_G[:, None]).t()
        ).view(steps, batch, -1)
        hidden_TBH = x_TBX.new_empty(steps + 1, batch, size)
        cells_TBH = torch.empty(steps + 1, batch, size, dtype=kind)
        tanh_TBH = torch.empty(steps, batch, size, dtype=kind)
        open_TBG = torch.empty(steps, batch, 4, size, dtype=kind)
        hidden_TBH[0], cells_TBH[0] = h_BH, c_BH
        flat_TBG = open_TBG.view(steps, batch, -1)
        for t in range(steps):
            torch.addmm(gates_TBG[t], hidden_TBH[t], recurrent_HG, out=gates_TBG[t])
            flat_TBG[t].copy_(gates_TBG[t]).sigmoid_()
            i_BH, f_BH, g_BH, o_BH = open_TBG[t].unbind(1)
            g_BH.mul_(2).sub_(1)
            torch.mul(f_BH, cells_TBH[t], out=cells_TBH[t + 1]).addcmul_(i_BH, g_BH)
            torch.mul(cells_TBH[t + 1], 2, out=tanh_TBH[t]).sigmoid_().mul_(2).sub_(1)
            hidden_TBH[t + 1] = o_BH * tanh_TBH[t]
        ctx.save_for_backward(x_TBX, hidden_TBH, cells_TBH, tanh_TBH, open_TBG, weight_xh_GX, weight_hh_GH)
        return hidden_TBH[1:], cells_TBH[-1].to(c_BH.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh_TBH: Tensor, dc_BH: Tensor) -> tuple[Tensor | None, ...]:
        x_TBX, hidden_TBH, cells_TBH, tanh_TBH, open_TBG, weight_xh_GX, weight_hh_GH = ctx.saved_tensors
        steps, batch, size = tanh_TBH.shape
        i_TBH, f_TBH, g_TBH, o_TBH = open_TBG.unbind(2)
        # What a gradient of c_t (of h_t for the last gate) is multiplied by on its way to the gates.
        slope_TBG = torch.empty_like(open_TBG)
        torch.mul(g_TBH * i_TBH, 1 - i_TBH, out=slope_TBG[:, :, 0])
        torch.mul(cells_TBH[:-1] * f_TBH, 1 - f_TBH, out=slope_TBG[:, :, 1])
        torch.mul(i_TBH, 1 - g_TBH * g_TBH, out=slope_TBG[:, :, 2])
        torch.mul(tanh_TBH * o_TBH, 1 - o_TBH, out=slope_TBG[:, :, 3])
        through_TBH = o_TBH * (1 - tanh_TBH * tanh_TBH)
        dgates_TBG = torch.empty(steps, batch, 4, size, dtype=weight_hh_GH.dtype)
        dc_BH = dc_BH.to(tanh_TBH.dtype)
        later_BH: Tensor | None = None
        for t in range(steps - 1, -1, -1):
            dh_BH = dh_TBH[t].to(tanh_TBH.dtype)
            if later_BH is not None:
                dh_BH = dh_BH + later_BH
            dc_BH = torch.addcmul(dc_BH, dh_BH, through_TBH[t])
            dgates_TBG[t, :, :3] = slope_TBG[t, :, :3] * dc_BH[:, None]
            dgates_TBG[t, :, 3] = slope_TBG[t, :, 3] * dh_BH
            dc_BH = dc_BH * f_TBH[t]
            later_BH = torch.mm(dgates_TBG[t].view(batch, -1), weight_hh_GH)
        flat_NG = dgates_TBG.view(steps * batch, -1)
        needs = ctx.needs_input_grad
        dx_TBX = torch.mm(flat_NG, weight_xh_GX).view(steps, batch, -1) if needs[0] else None
        assert later_BH is not None
        return (
            dx_TBX,
            later_BH,
            dc_BH,
            torch.mm(flat_NG.t(), x_TBX.reshape(steps * batch, -1)) if needs[3] else None,
            torch.mm(flat_NG.t(), hidden_TBH[:-1].reshape(steps * batch, -1)) if needs[4] else None,
            flat_NG.sum(0, dtype=tanh_TBH.dtype) if needs[5] else None,
        )


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
