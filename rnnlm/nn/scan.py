"""The linear recurrence h_t = k_t * h_{t-1} + a_t, of which all values of k and a are known beforehand.

Shapes: T time, B batch, H hidden size.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear_scan(keep_TBH: Tensor, add_TBH: Tensor, start_BH: Tensor) -> Tensor:
    """All h_t of `h_t = keep_t * h_{t-1} + add_t`.

    On a CPU step by step, which there is faster than any tree; on a GPU in log2(T) rounds over the whole window (Hillis
    and Steele 1986), each of which joins pairs of maps: (k, a) then (k', a') is (k' k, k' a + a'). With factors between 0
    and 1 nothing can overflow, so logarithms are not needed.

    Args:
        keep_TBH: k, the share of the last value that is kept.
        add_TBH: a.
        start_BH: h_0.

    Returns:
        h_1 to h_T, [T, B, H], in the type of `add_TBH`.
    """
    return _LinearScan.apply(keep_TBH, add_TBH, start_BH)  # type: ignore[no-any-return]


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keep_TBH: Tensor, add_TBH: Tensor, start_BH: Tensor) -> Tensor:
        hidden_TBH = _scan(keep_TBH, add_TBH, start_BH)
        ctx.save_for_backward(keep_TBH, hidden_TBH, start_BH)
        return hidden_TBH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TBH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # What reaches h_t: its own gradient, and that of h_{t+1} times k_{t+1}. The same recurrence, from the end.
        keep_TBH, hidden_TBH, start_BH = ctx.saved_tensors
        later_TBH = torch.cat([keep_TBH[1:], torch.zeros_like(keep_TBH[:1])]).flip(0)
        reaching_TBH = _scan(later_TBH, grad_TBH.flip(0), torch.zeros_like(start_BH)).flip(0)
        before_TBH = torch.cat([start_BH[None], hidden_TBH[:-1]])
        return reaching_TBH * before_TBH, reaching_TBH, reaching_TBH[0] * keep_TBH[0]


def _scan(keep_TBH: Tensor, add_TBH: Tensor, start_BH: Tensor) -> Tensor:
    if add_TBH.is_cuda:
        return _in_rounds(keep_TBH, add_TBH, start_BH)
    hidden_TBH = torch.empty_like(add_TBH)
    before_BH = start_BH
    for keep_BH, add_BH, out_BH in zip(keep_TBH, add_TBH, hidden_TBH, strict=True):
        before_BH = torch.addcmul(add_BH, keep_BH, before_BH, out=out_BH)
    return hidden_TBH


def _in_rounds(keep_TBH: Tensor, add_TBH: Tensor, start_BH: Tensor) -> Tensor:
    hidden_TBH = torch.cat([torch.addcmul(add_TBH[:1], keep_TBH[:1], start_BH[None]), add_TBH[1:]])
    reach = 1
    while reach < hidden_TBH.shape[0]:
        joined_TBH = torch.addcmul(hidden_TBH[reach:], keep_TBH[reach:], hidden_TBH[:-reach])
        keep_TBH = torch.cat([keep_TBH[:reach], keep_TBH[reach:] * keep_TBH[:-reach]])
        hidden_TBH = torch.cat([hidden_TBH[:reach], joined_TBH])
        reach *= 2
    return hidden_TBH
