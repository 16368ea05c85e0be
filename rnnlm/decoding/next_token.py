"""The distribution of the next token: whole, or only its most probable tokens, for which not everything has to be made.

Shapes: N rows, n some of them, E features, V vocabulary, S source length, C candidates.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rnnlm.decoding.processors import stable_topk
from rnnlm.nn.copy import FLOOR
from rnnlm.nn.products import Precision, Product

CACHE_ELEMENTS = 1 << 20
"""Logits made at a time, about: more would leave the cache of a core, fewer make the product of matrices dear."""
_ROWS = 64
"""Rows are made in multiples of this, as products are fastest so."""
_LOG2_E = 1 / math.log(2)
_LEAST, _MOST = 1e-30, 1e38
"""Between these a sum of exponentials is exact enough without the greatest of them taken out first."""


class NextToken(Protocol):
    """A distribution for each row. It is read once."""

    def best(self, count: int, banned: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The most probable tokens of each row, best first; among equals the lower id comes first.

        Args:
            count: C, at most V.
            banned: ids of tokens whose log-probability counts as -inf.

        Returns:
            Log-probabilities and tokens, both [N, C].
        """

    def log_probs(self) -> Tensor:
        """Log-probabilities of all tokens, [N, V], which the caller may change."""


class LogProbs:
    """A distribution that was made as a whole."""

    def __init__(self, log_probs_NV: Tensor) -> None:
        self._log_probs_NV = log_probs_NV

    def best(self, count: int, banned: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See `NextToken.best`."""
        return stable_topk(ban(self._log_probs_NV, banned), count)

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
    """softmax(W x + b), prepared for decoding on a CPU.

    Logits are made for a few rows at a time, which stay in a core's cache; what is wanted is taken out, and they are
    forgotten. Rows never mix: a row's result does not depend on the others.
    """

    def __init__(self, weight_VE: Tensor, bias_V: Tensor, precision: Precision) -> None:
        self._product = Product(weight_VE, bias_V, precision)
        self._rows = max(1, CACHE_ELEMENTS // len(bias_V) // _ROWS) * _ROWS

    def pieces(self, features_NE: Tensor, copied: Copied | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits [n, V] that may be changed, and what makes log-probabilities of them when it is added, [n, 1]."""
        for first in range(0, len(features_NE), self._rows):
            some = slice(first, first + self._rows)
            logits_nV = self._product(features_NE[some])
            shift_n1 = _log_total(logits_nV).neg_()
            if copied is not None:
                shift_n1.add_(copied.log_generate_N[some, None])
                _mix(logits_nV, shift_n1, Copied(*(tensor[some] for tensor in copied)))
            yield logits_nV, shift_n1


class PreparedNextToken:
    """The distributions that an output layer gives to carried features."""

    def __init__(self, layer: OutputLayer, features_NE: Tensor, copied: Copied | None = None) -> None:
        self._pieces = layer.pieces(features_NE, copied)

    def best(self, count: int, banned: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See `NextToken.best`."""
        values, tokens = [], []
        for logits_nV, shift_n1 in self._pieces:
            values_nC, tokens_nC = stable_topk(ban(logits_nV, banned), count)
            values.append(values_nC.add_(shift_n1))
            tokens.append(tokens_nC)
        return torch.cat(values), torch.cat(tokens)

    def log_probs(self) -> Tensor:
        """See `NextToken.log_probs`."""
        return torch.cat([logits_nV.add_(shift_n1) for logits_nV, shift_n1 in self._pieces])


def ban(scores_NV: Tensor, banned: Sequence[int]) -> Tensor:
    """Give some tokens -inf; changes its argument and returns it."""
    for token in banned:
        scores_NV[:, token] = -torch.inf
    return scores_NV


def _log_total(logits_nV: Tensor) -> Tensor:
    """Logarithm of the sum of the exponentials of each row, [n, 1]."""
    # e^x = 2^(x log2 e): torch's exp2 takes a third of the time of its exp, which asks another library.
    total_n1 = torch.mul(logits_nV, _LOG2_E).exp2_().sum(1, keepdim=True)
    plain_n1 = (total_n1 > _LEAST) & (total_n1 < _MOST)
    if plain_n1.all():
        return total_n1.log_()
    return torch.where(plain_n1, total_n1.log(), torch.logsumexp(logits_nV, 1, keepdim=True))


def _mix(logits_nV: Tensor, shift_n1: Tensor, copied: Copied) -> None:
    """Add the probability of copying to that of generating, in place, at the tokens of the source."""
    generated_nS = logits_nV.gather(1, copied.ids_NS).add_(shift_n1)
    copying_nS = copied.mass_NS.clamp_min(FLOOR).log_().add_(copied.log_copy_N[:, None])
    logits_nV.scatter_(1, copied.ids_NS, torch.logaddexp(generated_nS, copying_nS).sub_(shift_n1))
