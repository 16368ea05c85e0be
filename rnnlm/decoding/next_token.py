"""The distribution of the next token: whole, or only its most probable tokens, for which not everything has to be made.

Shapes: A rows of a batch, K hypotheses of each, N = A K, n some of them, E features, V vocabulary, S source length, C extensions.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from rnnlm.decoding.processors import stable_topk
from rnnlm.nn.copy import FLOOR
from rnnlm.nn.products import NormalizedProduct, Precision, Product

CACHE_ELEMENTS = 1 << 20
"""Logits made at a time, about: more would leave the cache of a core, fewer make the product of matrices dear."""
_ROWS = 64
"""Rows are made in multiples of this, as products are fastest so."""
_LN_2 = math.log(2)
_LEAST, _MOST = 1e-30, 1e38
"""Between these a sum of exponentials is exact enough without the greatest of them taken out first."""


class Extensions(NamedTuple):
    """The most probable extensions of each row's hypotheses by a token, best first."""

    log_probs_AC: Tensor
    """Of the whole sequence, float64."""
    parents_AC: Tensor
    """Which hypothesis of the row is extended."""
    tokens_AC: Tensor


class NextToken(Protocol):
    """A distribution for each hypothesis. It is read once."""

    def best(self, so_far_AK: Tensor, count: int, banned: Sequence[int]) -> Extensions:
        """The most probable extensions; among equals the better hypothesis and then the lower token id comes first.

        Args:
            so_far_AK: log-probability of each hypothesis, float64; N = A K.
            count: C, at most K V.
            banned: ids of tokens whose log-probability counts as -inf.
        """

    def log_probs(self) -> Tensor:
        """Log-probabilities of all tokens, [N, V], which the caller may change."""


class LogProbs:
    """A distribution that was made as a whole."""

    def __init__(self, log_probs_NV: Tensor) -> None:
        self._log_probs_NV = log_probs_NV

    def best(self, so_far_AK: Tensor, count: int, banned: Sequence[int]) -> Extensions:
        """See `NextToken.best`."""
        return _extensions(ban(self._log_probs_NV, banned), so_far_AK, count)

    def log_probs(self) -> Tensor:
        """See `NextToken.log_probs`."""
        return self._log_probs_NV


class Copied(NamedTuple):
    """The other part of a mixture p = p_gen p_vocab + (1 - p_gen) sum_{s: x_s = y} a_s, see `rnnlm.nn.copy`."""

    log_generate_N: Tensor
    log_copy_N: Tensor
    mass_NS: Tensor
    """Attention on all positions that hold the same token as this one."""
    ids_NS: Tensor


class OutputLayer:
    """softmax(W x + b), or softmax(W n(x) + b) with a layer norm n, prepared for decoding on a CPU.

    Logits are in bits, as torch's exp2 takes a third of the time of its exp, which asks another library.
    Logits are made for a few rows at a time, which stay in a core's cache; what is wanted is taken out, and they are
    forgotten. Rows never mix: a row's result does not depend on the others.
    """

    def __init__(
        self, weight_VE: Tensor, bias_V: Tensor, precision: Precision, norm: nn.LayerNorm | None = None
    ) -> None:
        layer = weight_VE / _LN_2, bias_V / _LN_2, precision
        self._product = Product(*layer) if norm is None else NormalizedProduct(norm, *layer)
        self._rows = max(1, CACHE_ELEMENTS // len(bias_V) // _ROWS) * _ROWS

    def pieces(self, features_NE: Tensor, copied: Copied | None, beams: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits [n, V] that may be changed, and what makes logarithms of probabilities of them when it is added, [n, 1]; in bits.

        n is a multiple of `beams`.
        """
        rows = max(1, self._rows // beams) * beams
        for first in range(0, len(features_NE), rows):
            some = slice(first, first + rows)
            logits_nV = self._product(features_NE[some])
            shift_n1 = _log_total(logits_nV).neg_()
            if copied is not None:
                shift_n1.add_(copied.log_generate_N[some, None], alpha=1 / _LN_2)
                _mix(logits_nV, shift_n1, Copied(*(tensor[some] for tensor in copied)))
            yield logits_nV, shift_n1


class PreparedNextToken:
    """The distributions that an output layer gives to carried features."""

    def __init__(self, layer: OutputLayer, features_NE: Tensor, copied: Copied | None = None) -> None:
        self._layer, self._features_NE, self._copied = layer, features_NE, copied

    def best(self, so_far_AK: Tensor, count: int, banned: Sequence[int]) -> Extensions:
        """See `NextToken.best`."""
        beams, made, first = so_far_AK.shape[1], [], 0
        so_far_AK = so_far_AK / _LN_2
        for logits_nV, shift_n1 in self._layer.pieces(self._features_NE, self._copied, beams):
            some = slice(first, first + len(logits_nV) // beams)
            made.append(_extensions(ban(logits_nV, banned), so_far_AK[some] + shift_n1.view(-1, beams), count))
            first = some.stop
        log2_probs, parents, tokens = (torch.cat(parts) for parts in zip(*made, strict=True))
        return Extensions(log2_probs.mul_(_LN_2), parents, tokens)

    def log_probs(self) -> Tensor:
        """See `NextToken.log_probs`."""
        pieces = self._layer.pieces(self._features_NE, self._copied)
        return torch.cat([logits_nV.add_(shift_n1).mul_(_LN_2) for logits_nV, shift_n1 in pieces])


def _extensions(scores_NV: Tensor, so_far_AK: Tensor, count: int) -> Extensions:
    vocab_size = scores_NV.shape[1]
    sums_AC, index_AC = stable_topk(scores_NV.reshape(len(so_far_AK), -1), count, so_far_AK)
    parents_AC = index_AC // vocab_size
    return Extensions(sums_AC, parents_AC, index_AC - parents_AC * vocab_size)


def ban(scores_NV: Tensor, banned: Sequence[int]) -> Tensor:
    """Give some tokens -inf; changes its argument and returns it."""
    for token in banned:
        scores_NV[:, token] = -torch.inf
    return scores_NV


def _log_total(logits_nV: Tensor) -> Tensor:
    """Logarithm of the sum of the exponentials of each row, [n, 1]; all in bits."""
    total_n1 = torch.exp2(logits_nV).sum(1, keepdim=True)
    plain_n1 = (total_n1 > _LEAST) & (total_n1 < _MOST)
    if plain_n1.all():
        return total_n1.log2_()
    return torch.where(plain_n1, total_n1.log2(), torch.logsumexp(logits_nV * _LN_2, 1, keepdim=True) / _LN_2)


def _mix(logits_nV: Tensor, shift_n1: Tensor, copied: Copied) -> None:
    """Add the probability of copying to that of generating, in place, at the tokens of the source; in bits."""
    generated_nS = logits_nV.gather(1, copied.ids_NS).add_(shift_n1)
    copying_nS = copied.mass_NS.clamp_min(FLOOR).log2_().add_(copied.log_copy_N[:, None], alpha=1 / _LN_2)
    logits_nV.scatter_(1, copied.ids_NS, torch.logaddexp2(generated_nS, copying_nS).sub_(shift_n1))
