"""Output layer and cross-entropy in one, over real tokens only, without a full tensor of logits.

The gradient is computed in the forward pass, a piece of rows at a time: logits are made, turned into probabilities,
then into their own gradient, and forgotten. Nothing is computed twice, and memory does not grow with the number of rows
times the vocabulary.

Shapes: N tokens, R those that are real or a piece of them, E width of the features, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PAD_ID = 0
CHUNK_ELEMENTS = 1 << 21
"""Logits made at a time on a CPU: they stay in its last-level cache."""
CHUNK_ELEMENTS_GPU = 1 << 27
"""Logits made at a time on a GPU: few launches, half a gigabyte."""


class Copying(NamedTuple):
    """The other part of a mixture p = p_gen p_vocab + p_copy, at the targets."""

    log_generate: Tensor
    """log p_gen, [N]"""
    log_copy: Tensor
    """log p_copy, [N], finite"""


def linear_cross_entropy(
    features_NE: Tensor,
    weight_VE: Tensor,
    bias_V: Tensor,
    target_N: Tensor,
    *,
    copying: Copying | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of softmax(W x + b), optionally mixed with a distribution that copies.

    With smoothing e the objective of a token is (1 - e) nats + e r mean_v(-log p_vocab(v)), where r is the share of the
    vocabulary in the target's probability (1 without copying), taken as a constant: a token that is copied does not
    flatten the vocabulary.

    Rows whose target is padding count for nothing, and on a CPU are dropped before the output layer. (On a GPU they keep
    their place with no weight, since their number could be known only by waiting for the device.)

    Args:
        features_NE: x.
        weight_VE: W.
        bias_V: b.
        target_N: token ids.
        copying: the other part of the mixture.
        label_smoothing: e, from 0 to below 1.

    Returns:
        The objective, a scalar with a gradient, and the nats of each token [N] (-log p, not smoothed; zero at padding)
        without one.
    """
    log_generate_N, log_copy_N = copying or (None, None)
    arguments = (features_NE, weight_VE, bias_V, log_generate_N, log_copy_N)
    wants_gradient = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in arguments)
    objective, nats_N = _LinearCrossEntropy.apply(*arguments, target_N, label_smoothing, wants_gradient)
    return objective, nats_N


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features_NE: Tensor,
        weight_VE: Tensor,
        bias_V: Tensor,
        log_generate_N: Tensor | None,
        log_copy_N: Tensor | None,
        target_N: Tensor,
        label_smoothing: float,
        wants_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        kind = features_NE.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_VE.dtype
        rows = _RealRows(target_N)
        target_R = rows.take(target_N)
        layer = (rows.take(features_NE).to(dtype), weight_VE.to(dtype), bias_V.to(dtype))
        copying = None
        if log_generate_N is not None and log_copy_N is not None:
            copying = Copying(rows.take(log_generate_N), rows.take(log_copy_N))
        with torch.autocast(kind, enabled=False):
            losses, gradients = _pieces(layer, target_R, copying, label_smoothing, wants_gradient)
            if gradients:
                mixture = _mixture_gradients(losses, target_R, label_smoothing) if copying else ()
                ctx.gradients = (
                    rows.spread(gradients[0].to(features_NE.dtype)),
                    gradients[1].to(weight_VE.dtype),
                    gradients[2].to(bias_V.dtype),
                    *(rows.spread(gradient) for gradient in mixture),
                    *(() if copying else (None, None)),
                )
        nats_N = rows.spread(losses.nats)
        ctx.mark_non_differentiable(nats_N)
        return losses.objective.sum(), nats_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_objective: Tensor, _grad_nats: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if x is None else x * grad_objective.to(x.dtype) for x in ctx.gradients)
        return *gradients, None, None, None


class _RealRows:
    """Rows whose target is not padding; all rows where dropping some would cost more than it saves."""

    def __init__(self, target_N: Tensor) -> None:
        index_R = None if target_N.is_cuda else target_N.nonzero()[:, 0]
        self._num_rows = target_N.shape[0]
        self._index_R = None if index_R is None or index_R.shape[0] == self._num_rows else index_R

    def take(self, x_NX: Tensor) -> Tensor:
        """The real rows."""
        return x_NX if self._index_R is None else x_NX.index_select(0, self._index_R)

    def spread(self, x_RX: Tensor) -> Tensor:
        """The real rows in their places, zeros at the others."""
        if self._index_R is None:
            return x_RX
        return x_RX.new_zeros(self._num_rows, *x_RX.shape[1:]).index_copy_(0, self._index_R, x_RX)


class _Losses(NamedTuple):
    """Of each token, [N] or of a piece [R]; all three are zero at padding."""

    objective: Tensor
    nats: Tensor
    responsibility: Tensor
    """Share of the vocabulary in the target's probability: the posterior of not having been copied."""


_Layer = tuple[Tensor, Tensor, Tensor]


def _pieces(
    layer: _Layer, target_N: Tensor, copying: Copying | None, smoothing: float, wants_gradient: bool
) -> tuple[_Losses, _Layer | None]:
    """Losses of all tokens, and if wanted the gradients of features, weight and bias, a piece of rows at a time."""
    features_NE, weight_VE, bias_V = layer
    sums = torch.promote_types(weight_VE.dtype, torch.float32)
    grad_features_NE = torch.empty_like(features_NE) if wants_gradient else None
    grad_weight_VE = torch.zeros_like(weight_VE, dtype=sums)
    grad_bias_V = torch.zeros_like(bias_V, dtype=sums)
    elements = CHUNK_ELEMENTS_GPU if target_N.is_cuda else CHUNK_ELEMENTS
    chunk = max(32, elements // weight_VE.shape[0])
    losses = []
    for start in range(0, max(1, target_N.shape[0]), chunk):
        piece = slice(start, start + chunk)
        features_RE = features_NE[piece]
        logits_RV = torch.addmm(bias_V, features_RE, weight_VE.t()).to(sums)
        mixed = copying and Copying(copying.log_generate[piece], copying.log_copy[piece])
        losses.append(_losses(logits_RV, target_N[piece], mixed, smoothing, wants_gradient))
        if grad_features_NE is not None:
            grad_RV = logits_RV.to(weight_VE.dtype)
            torch.mm(grad_RV, weight_VE, out=grad_features_NE[piece])
            _accumulate(grad_weight_VE, grad_RV.t(), features_RE)
            grad_bias_V += logits_RV.sum(0)
    whole = _Losses(*(torch.cat(column) for column in zip(*losses, strict=True)))
    return whole, None if grad_features_NE is None else (grad_features_NE, grad_weight_VE, grad_bias_V)


def _losses(
    logits_RV: Tensor, target_R: Tensor, copying: Copying | None, smoothing: float, wants_gradient: bool
) -> _Losses:
    """Losses of a piece. The logits are overwritten, with their gradient where it is wanted."""
    column_R1 = target_R[:, None]
    peak_R1 = logits_RV.amax(1, keepdim=True)
    target_R1 = logits_RV.gather(1, column_R1)
    mean_R1 = logits_RV.mean(1, keepdim=True) if smoothing else peak_R1
    total_R1 = logits_RV.sub_(peak_R1).exp_().sum(1, keepdim=True)
    norm_R1 = peak_R1 + total_R1.log()
    log_p_R = (target_R1 - norm_R1)[:, 0]
    share_R = (target_R != PAD_ID).to(log_p_R.dtype)
    nats_R = -log_p_R * share_R
    if copying is not None:
        generated_R = copying.log_generate + log_p_R
        mixed_R = torch.logaddexp(generated_R, copying.log_copy)
        nats_R = -mixed_R * share_R
        share_R = share_R * (generated_R - mixed_R).exp()
    objective_R = (1 - smoothing) * nats_R + smoothing * share_R * (norm_R1 - mean_R1)[:, 0]
    if wants_gradient:
        logits_RV.mul_(share_R[:, None] / total_R1)
        if smoothing:
            logits_RV.sub_(share_R[:, None] * (smoothing / logits_RV.shape[1]))
        logits_RV.scatter_add_(1, column_R1, (smoothing - 1) * share_R[:, None])
    return _Losses(objective_R, nats_R, share_R)


def _accumulate(sum_VE: Tensor, left_VR: Tensor, right_RE: Tensor) -> None:
    """Add a matrix product, in the sum's precision."""
    if sum_VE.dtype == left_VR.dtype:
        sum_VE.addmm_(left_VR, right_RE)
    else:
        sum_VE += left_VR @ right_RE


def _mixture_gradients(losses: _Losses, target_N: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Gradients of log p_gen and log p_copy: their posteriors, negative."""
    real_N = (target_N != PAD_ID).to(losses.responsibility.dtype)
    return (smoothing - 1) * losses.responsibility, (smoothing - 1) * (real_N - losses.responsibility)
