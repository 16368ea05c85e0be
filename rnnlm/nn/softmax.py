"""Output layer and cross-entropy in one, over real tokens only, without a full tensor of logits.

The gradient is computed in the forward pass, a block of rows at a time: logits are made, turned into probabilities,
then into their own gradient, and forgotten. Nothing is computed twice, and memory does not grow with the number of rows
times the vocabulary. Products take a whole block; what is between them takes pieces of it that stay in the cache.

With clusters the vocabulary is predicted in two steps, which costs several times less where it is large: the adaptive
softmax of Grave et al. (2017), https://arxiv.org/abs/1609.04309, without its projections.

Shapes: N tokens, R those that are real or a piece of them, E width of the features, V vocabulary, C clusters.
"""

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rnnlm.nn.shapes import padded, product_rows

PAD_ID = 0
BLOCK_ELEMENTS = 1 << 24
"""Logits made by one product on a CPU: the more rows it has, the fewer times the weights' gradient is read and written."""
CHUNK_ELEMENTS = 1 << 18
"""Logits that are turned into their gradient at a time on a CPU: in fp32 they stay in a core's cache."""
BLOCK_ELEMENTS_GPU = 1 << 27
"""Logits made by one product, and then turned into their gradient, on a GPU: few launches, half a gigabyte."""


class Copying(NamedTuple):
    """The other part of a mixture p = p_gen p_vocab + p_copy, at the targets."""

    log_generate: Tensor
    """log p_gen, [N]"""
    log_copy: Tensor
    """log p_copy, [N], finite"""


class Sample(NamedTuple):
    """Some of the vocabulary as the columns of the layer, in the place of all of it, see `rnnlm.nn.sampled_softmax`."""

    own: Tensor
    """The target's logit, [N]"""
    place: Tensor
    """The column that is the target's too, and counts for nothing, int64 [N]."""
    share: Tensor
    """Of each column in the mean of all logits, [K], without gradient."""
    mean_offset: Tensor
    """What has been added to the columns' logits, on that mean; a scalar without gradient."""


class Clusters(NamedTuple):
    """Rare tokens, predicted in two steps: first the cluster among the frequent tokens, then the token in the cluster.

    p(v) = p(v | head) for v < cutoffs[0], and p(cluster c | head) p(v | c) for cutoffs[c] <= v < cutoffs[c + 1].
    """

    cutoffs: tuple[int, ...]
    """First token id of each cluster, rising, between 1 and V - 1; smaller ids stand for more frequent tokens."""
    weight: Tensor
    """A row for each cluster in the first step, [C, E]."""
    bias: Tensor
    """[C]"""

    def bounds(self, vocab_size: int) -> list[tuple[int, int]]:
        """First token id of each cluster, and the one after its last."""
        return list(itertools.pairwise((*self.cutoffs, vocab_size)))


def linear_log_softmax(features_NE: Tensor, weight_VE: Tensor, bias_V: Tensor, clusters: Clusters | None) -> Tensor:
    """Scores [N, V] of all tokens, of which softmax makes p: logits without clusters, log p with them."""
    if clusters is None:
        return nn.functional.linear(features_NE, weight_VE, bias_V)
    head = _head(weight_VE, bias_V, clusters)
    log_p_NH = nn.functional.linear(features_NE, *head).log_softmax(1)
    first = clusters.cutoffs[0]
    parts = [log_p_NH[:, :first]]
    for number, (start, stop) in enumerate(clusters.bounds(weight_VE.shape[0]), first):
        logits_NT = nn.functional.linear(features_NE, weight_VE[start:stop], bias_V[start:stop])
        parts.append(logits_NT.log_softmax(1) + log_p_NH[:, number, None])
    return torch.cat(parts, 1)


def linear_cross_entropy(
    features_NE: Tensor,
    weight_VE: Tensor,
    bias_V: Tensor,
    target_N: Tensor,
    *,
    clusters: Clusters | None = None,
    copying: Copying | None = None,
    sample: Sample | None = None,
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
        clusters: rare tokens that are predicted in two steps; each step is smoothed by itself.
        copying: the other part of the mixture.
        sample: of which tokens the columns are, where they are not all.
        label_smoothing: e, from 0 to below 1.

    Raises:
        ValueError: clusters together with copying or a sample.

    Returns:
        The objective, a scalar with a gradient, and the nats of each token [N] (-log p, not smoothed; zero at padding)
        without one.
    """
    if clusters and (copying or sample):
        raise ValueError("clusters go with neither a mixture with copying nor a sample")
    cutoffs, *cluster_layer = clusters or ((), None, None)
    own_N = sample and sample.own
    arguments = (features_NE, weight_VE, bias_V, *cluster_layer, *(copying or (None, None)), own_N)
    wants_gradient = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in arguments)
    objective, nats_N = _LinearCrossEntropy.apply(
        *arguments, sample, target_N, cutoffs, label_smoothing, wants_gradient
    )
    return objective, nats_N


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features_NE: Tensor,
        weight_VE: Tensor,
        bias_V: Tensor,
        cluster_weight_CE: Tensor | None,
        cluster_bias_C: Tensor | None,
        log_generate_N: Tensor | None,
        log_copy_N: Tensor | None,
        own_N: Tensor | None,
        sample: Sample | None,
        target_N: Tensor,
        cutoffs: tuple[int, ...],
        label_smoothing: float,
        wants_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        kind = features_NE.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_VE.dtype
        sums = torch.promote_types(dtype, torch.float32)
        rows = _Rows.real(target_N, dtype)
        target_R = rows.take(target_N)
        layer = _Layer(rows.take(features_NE).to(dtype), weight_VE.to(dtype), bias_V.to(sums))
        gradient = layer.empty_gradient() if wants_gradient else None
        cluster_gradients: tuple[Tensor | None, Tensor | None] = (None, None)
        mixture_gradients: tuple[Tensor | None, Tensor | None] = (None, None)
        own_gradient: Tensor | None = None
        with torch.autocast(kind, enabled=False):
            if cluster_weight_CE is not None and cluster_bias_C is not None:
                clusters = Clusters(cutoffs, cluster_weight_CE.to(dtype), cluster_bias_C.to(sums))
                losses, cluster_gradients = _clustered(layer, clusters, target_R, label_smoothing, gradient)
            else:
                copying = None
                if log_generate_N is not None and log_copy_N is not None:
                    copying = Copying(rows.take(log_generate_N), rows.take(log_copy_N))
                if own_N is not None and sample is not None:
                    own_R, place_R = rows.take(own_N).to(layer.sums), rows.take(sample.place)
                    sample = sample._replace(own=own_R, place=place_R, share=sample.share.to(layer.sums))
                real_R = (target_R != PAD_ID).to(layer.sums)
                losses = _pieces(layer, target_R, real_R, copying, sample, label_smoothing, gradient)
                if copying and gradient:
                    posteriors = _mixture_gradients(losses, target_R, label_smoothing)
                    mixture_gradients = (rows.spread(posteriors[0]), rows.spread(posteriors[1]))
                if sample and gradient:
                    own_gradient = rows.spread(losses.responsibility * (losses.log_p.exp() - (1 - label_smoothing)))
        if gradient:
            ctx.save_for_backward(
                rows.spread(gradient.features.to(features_NE.dtype)),
                gradient.weight.to(weight_VE.dtype),
                gradient.bias.to(bias_V.dtype),
                *cluster_gradients,
                *mixture_gradients,
                own_gradient,
            )
        nats_N = rows.spread(losses.nats)
        ctx.mark_non_differentiable(nats_N)
        return losses.objective.sum(), nats_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_objective: Tensor, _grad_nats: Tensor) -> tuple[Tensor | None, ...]:
        # Where the objective is all that is differentiated, which only a CPU sees at once, nothing is multiplied, and the
        # tensors, which torch releases here, become the weights' gradients without a copy.
        gradients = ctx.saved_tensors
        if grad_objective.is_cuda or grad_objective != 1:
            gradients = [None if x is None else x * grad_objective.to(x.dtype) for x in gradients]
        return *gradients, None, None, None, None, None


class _Rows:
    """Some rows of N, and rows of padding after them where products are faster with few different numbers of rows.

    Args:
        index_R: which; None: all.
        num_rows: N.
        dtype: of the products.
        device: of all tensors.
    """

    def __init__(self, index_R: Tensor | None, num_rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self._num_rows = num_rows
        self._index_R = index_R
        self._num_taken = num_rows if index_R is None else index_R.shape[0]
        self._num_padded = product_rows(self._num_taken, dtype, device)

    @classmethod
    def real(cls, target_N: Tensor, dtype: torch.dtype) -> "_Rows":
        """Those whose target is not padding; all where dropping some would cost more than it saves."""
        index_R = None if target_N.is_cuda else target_N.nonzero()[:, 0]
        if index_R is not None and index_R.shape[0] == target_N.shape[0]:
            index_R = None
        return cls(index_R, target_N.shape[0], dtype, target_N.device)

    def take(self, x_NX: Tensor) -> Tensor:
        """These rows, then zeros (as targets, padding)."""
        return padded(x_NX if self._index_R is None else x_NX.index_select(0, self._index_R), self._num_padded)

    def spread(self, x_RX: Tensor) -> Tensor:
        """These rows in their places, zeros at the others."""
        x_RX = x_RX[: self._num_taken]
        if self._index_R is None:
            return x_RX
        return self.add(x_RX, x_RX.new_zeros(self._num_rows, *x_RX.shape[1:]))

    def add(self, x_RX: Tensor, total_NX: Tensor) -> Tensor:
        """The total, with these rows added to it."""
        if self._index_R is None:
            return total_NX.add_(x_RX[: self._num_taken])
        return total_NX.index_add_(0, self._index_R, x_RX[: self._num_taken])


class _Losses(NamedTuple):
    """Of each token, [N] or of a piece [R]; the first three are zero at padding."""

    objective: Tensor
    nats: Tensor
    responsibility: Tensor
    """Share of the vocabulary in the target's probability: the posterior of not having been copied."""
    log_p: Tensor
    """Of the target, as far as it was not copied; anything at padding."""


class _Layer(NamedTuple):
    """Input and weights of a linear layer, or the gradients of these."""

    features: Tensor
    """[N, E]"""
    weight: Tensor
    """[V, E]"""
    bias: Tensor
    """[V], of the type of sums: it is added to logits that are."""

    @property
    def sums(self) -> torch.dtype:
        """What losses and the gradients of weights are summed in."""
        return torch.promote_types(self.weight.dtype, torch.float32)

    def empty_gradient(self) -> "_Layer":
        """Room for gradients: the features' in their type, those of the weights in that of sums."""
        weight_VE, bias_V = (torch.empty_like(tensor, dtype=self.sums) for tensor in self[1:])
        return _Layer(torch.empty_like(self.features), weight_VE, bias_V)


def _pieces(
    layer: _Layer,
    target_N: Tensor,
    real_N: Tensor,
    copying: Copying | None,
    sample: Sample | None,
    smoothing: float,
    gradient: _Layer | None,
) -> _Losses:
    """Losses of all tokens, a block of rows at a time; the gradients are written where they are wanted."""
    on_gpu = target_N.is_cuda
    num_rows, vocab_size = target_N.shape[0], layer.weight.shape[0]
    block_rows = max(32, (BLOCK_ELEMENTS_GPU if on_gpu else BLOCK_ELEMENTS) // vocab_size)
    piece_rows = block_rows if on_gpu else max(8, CHUNK_ELEMENTS // vocab_size)
    losses = []
    for start in range(0, max(1, num_rows), block_rows):
        stop = min(start + block_rows, num_rows)
        features_RE = layer.features[start:stop]
        logits_RV = features_RE @ layer.weight.t()
        sum_V = torch.zeros_like(layer.bias)
        for begin in range(start, max(stop, start + 1), piece_rows):
            piece = slice(begin, min(begin + piece_rows, stop))
            part_RV = logits_RV[piece.start - start : piece.stop - start]
            wide_RV = part_RV.to(layer.sums).add_(layer.bias)
            mixed = copying and Copying(copying.log_generate[piece], copying.log_copy[piece])
            drawn = sample and sample._replace(own=sample.own[piece], place=sample.place[piece])
            wants_gradient = gradient is not None
            losses.append(_losses(wide_RV, target_N[piece], real_N[piece], mixed, drawn, smoothing, wants_gradient))
            if gradient is not None:
                sum_V += wide_RV.sum(0)
                if wide_RV is not part_RV:
                    part_RV.copy_(wide_RV)
        if gradient is not None:
            torch.mm(logits_RV, layer.weight, out=gradient.features[start:stop])
            _write(gradient.weight, logits_RV.t() @ features_RE, adds=start > 0)
            _write(gradient.bias, sum_V, adds=start > 0)
    return _Losses(*(torch.cat(column) for column in zip(*losses, strict=True)))


def _write(total: Tensor, part: Tensor, *, adds: bool) -> None:
    """Begin a sum, or add to it."""
    if adds:
        total += part
    else:
        total.copy_(part)


def _clustered(
    layer: _Layer, clusters: Clusters, target_N: Tensor, smoothing: float, gradient: _Layer | None
) -> tuple[_Losses, tuple[Tensor | None, Tensor | None]]:
    """Losses of both steps, and the gradients of the clusters' weight and bias; the other gradients are written."""
    first = clusters.cutoffs[0]
    real_N = (target_N != PAD_ID).to(layer.sums)
    head = _Layer(layer.features, *_head(layer.weight, layer.bias, clusters))
    head_gradient = head.empty_gradient() if gradient else None
    cutoffs = torch.tensor(clusters.cutoffs, device=target_N.device)
    number_N = torch.bucketize(target_N.contiguous(), cutoffs, right=True)  # 0 in the head, c + 1 in cluster c
    head_target_N = torch.where(number_N == 0, target_N, number_N + (first - 1))
    losses = _pieces(head, head_target_N, real_N, None, None, smoothing, head_gradient)
    if gradient and head_gradient:
        gradient.features.copy_(head_gradient.features)
        gradient.weight[:first] = head_gradient.weight[:first]
        gradient.bias[:first] = head_gradient.bias[:first]
    for number, (start, stop) in enumerate(clusters.bounds(layer.weight.shape[0]), 1):
        index_R = (number_N == number).nonzero()[:, 0]
        rows = _Rows(index_R, target_N.shape[0], layer.weight.dtype, target_N.device)
        tail = _Layer(rows.take(layer.features), layer.weight[start:stop], layer.bias[start:stop])
        tail_gradient = None
        if gradient:
            features_RE = torch.empty_like(tail.features)
            tail_gradient = _Layer(features_RE, gradient.weight[start:stop], gradient.bias[start:stop])
        tail_target_R = rows.take(target_N - start)
        more = _pieces(tail, tail_target_R, rows.take(real_N), None, None, smoothing, tail_gradient)
        rows.add(more.objective, losses.objective)
        rows.add(more.nats, losses.nats)
        if gradient and tail_gradient:
            rows.add(tail_gradient.features, gradient.features)
    if head_gradient is None:
        return losses, (None, None)
    return losses, (head_gradient.weight[first:], head_gradient.bias[first:])


def _head(weight_VE: Tensor, bias_V: Tensor, clusters: Clusters) -> tuple[Tensor, Tensor]:
    """The layer of the first step: frequent tokens, then clusters."""
    first = clusters.cutoffs[0]
    return torch.cat([weight_VE[:first], clusters.weight]), torch.cat([bias_V[:first], clusters.bias])


def _losses(
    logits_RV: Tensor,
    target_R: Tensor,
    share_R: Tensor,
    copying: Copying | None,
    sample: Sample | None,
    smoothing: float,
    wants_gradient: bool,
) -> _Losses:
    """Losses of a piece, times a share that is 1 or, at padding, 0. The logits are overwritten, with their gradient where
    it is wanted.
    """
    column_R1 = target_R[:, None]
    mean_R1 = _mean(logits_RV, sample) if smoothing else 0.0
    if sample is None:
        target_R1 = logits_RV.gather(1, column_R1)
    else:
        target_R1 = sample.own[:, None]
        logits_RV.scatter_(1, sample.place[:, None], -torch.inf)
    peak_R1 = logits_RV.amax(1, keepdim=True)
    torch.softmax(logits_RV, 1, out=logits_RV)
    # The greatest probability is at least 1/V, so its logarithm tells the columns' normalizer exactly enough.
    norm_R1 = columns_R1 = peak_R1 - logits_RV.amax(1, keepdim=True).log_()
    if sample is not None:
        norm_R1 = torch.logaddexp(columns_R1, target_R1)
    log_p_R = (target_R1 - norm_R1)[:, 0]
    nats_R = -log_p_R * share_R
    if copying is not None:
        generated_R = copying.log_generate + log_p_R
        mixed_R = torch.logaddexp(generated_R, copying.log_copy)
        nats_R = -mixed_R * share_R
        share_R = share_R * (generated_R - mixed_R).exp()
    objective_R = (1 - smoothing) * nats_R + smoothing * share_R * (norm_R1 - mean_R1)[:, 0]
    if wants_gradient:
        if sample is None:
            weight_R1 = share_R[:, None]
        else:
            weight_R1 = share_R[:, None] * (columns_R1 - norm_R1).exp_()
        logits_RV.mul_(weight_R1)
        if smoothing:
            share_V = 1 / logits_RV.shape[1] if sample is None else sample.share
            logits_RV.sub_(share_R[:, None] * (smoothing * share_V))
        if sample is None:
            logits_RV.scatter_add_(1, column_R1, (smoothing - 1) * share_R[:, None])
    return _Losses(objective_R, nats_R, share_R, log_p_R)


def _mean(logits_RV: Tensor, sample: Sample | None) -> Tensor:
    """Of the logits of the vocabulary, [R, 1]; from a sample an estimate."""
    if sample is None:
        return logits_RV.mean(1, keepdim=True)
    return logits_RV @ sample.share[:, None] - sample.mean_offset


def _mixture_gradients(losses: _Losses, target_N: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Gradients of log p_gen and log p_copy: their posteriors, negative."""
    real_N = (target_N != PAD_ID).to(losses.responsibility.dtype)
    return (smoothing - 1) * losses.responsibility, (smoothing - 1) * (real_N - losses.responsibility)
