"""What is done to a model's log-probabilities before a token is chosen, and the exact choice of the best ones.

Shapes: B rows, N candidates of a row, V vocabulary, C candidates kept.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_GROUP = 20
"""Candidates of one group in the first stage of `stable_topk`; 16 to 25 were fastest for 4,000 to 40,000 candidates."""
_NUCLEUS_GUESSES = (64, 512)
"""Tokens looked at first for `top_p`; the whole vocabulary is sorted only where these do not cover it."""


class Candidates(NamedTuple):
    """The tokens that a draw chooses from, most probable first where they were sorted."""

    weights_BC: Tensor
    """float64, not normalised; 0 where a token was filtered out."""
    tokens_BC: Tensor | None
    """None: candidate c is token c."""


def stable_topk(scores_BN: Tensor, k: int, offsets_BP: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The `k` largest values of each row and where they stand, best first; among equals the lower index comes first.

    Exact: a first stage finds the k groups with the largest maxima, which hold the k best, and the second looks into
    these alone. Neither stage orders equals: rows in which equal finite values meet are looked through as a whole.

    Args:
        scores_BN: the scores.
        k: how many, at most N.
        offsets_BP: added to the P equal parts of a row, in their own type; sums are made only where the best can be.
    """
    num_parts = 1 if offsets_BP is None else offsets_BP.shape[1]
    if offsets_BP is not None and num_parts == 1:
        values_BK, index_BK = stable_topk(scores_BN, k)  # what a whole row is moved by changes no order
        return values_BK + offsets_BP, index_BK
    scores_BPV = scores_BN.reshape(len(scores_BN), num_parts, -1)
    values_BC, index_BC = _grouped_topk(scores_BPV, offsets_BP, min(k + 1, scores_BN.shape[1]))
    equal_B = ((values_BC[:, 1:] == values_BC[:, :-1]) & values_BC[:, 1:].isfinite()).any(1)
    values_BK, index_BK = values_BC[:, :k], index_BC[:, :k]
    if equal_B.any():
        rows = equal_B.nonzero()[:, 0]
        sums = _plus(scores_BPV[rows], None if offsets_BP is None else offsets_BP[rows])
        values_BK[rows], index_BK[rows] = _ordered_topk(sums.flatten(1), values_BK[rows, -1:], k)
    return values_BK, index_BK


def _ordered_topk(scores_BN: Tensor, least_B1: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`stable_topk` where the k-th largest value of each row is known, but not which of several equals come first."""
    row_M, index_M = (~(scores_BN < least_B1)).nonzero(as_tuple=True)
    counts_B = torch.bincount(row_M, minlength=len(scores_BN))
    place_M = torch.arange(len(row_M), device=row_M.device) - (counts_B.cumsum(0) - counts_B)[row_M]
    values_BC = scores_BN.new_full((len(scores_BN), int(counts_B.max())), -torch.inf)
    index_BC = index_M.new_zeros(values_BC.shape)
    values_BC[row_M, place_M], index_BC[row_M, place_M] = scores_BN[row_M, index_M], index_M
    values_BC, order_BC = values_BC.sort(dim=1, descending=True, stable=True)
    return values_BC[:, :k], index_BC.gather(1, order_BC)[:, :k]


def _plus(scores_BPX: Tensor, offsets_BP: Tensor | None) -> Tensor:
    return scores_BPX if offsets_BP is None else scores_BPX + offsets_BP[:, :, None]


def _grouped_topk(scores_BPV: Tensor, offsets_BP: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """`stable_topk` of the sums, [B, P V], with equals in any order."""
    batch_size, num_parts, size = scores_BPV.shape
    num_groups = size // _GROUP
    if num_parts * num_groups < 4 * k:
        return _plus(scores_BPV, offsets_BP).flatten(1).topk(k, dim=1)
    # A group is strided (candidate i of a part belongs to group i mod num_groups), which keeps its maximum a vector operation.
    grouped = scores_BPV[:, :, : num_groups * _GROUP].reshape(batch_size, num_parts, _GROUP, num_groups)
    groups_BK = _plus(grouped.amax(2), offsets_BP).flatten(1).topk(k, dim=1).indices
    first_BK = groups_BK + groups_BK // num_groups * (size - num_groups)
    steps = torch.arange(0, num_groups * _GROUP, num_groups, device=scores_BPV.device)
    index = (first_BK[:, :, None] + steps).flatten(1)
    if num_groups * _GROUP < size:
        rest = torch.arange(num_parts * size, device=scores_BPV.device).view(num_parts, size)[:, num_groups * _GROUP :]
        index = torch.cat([index, rest.reshape(1, -1).expand(batch_size, -1)], 1)
    values = scores_BPV.flatten(1).gather(1, index)
    if offsets_BP is not None:
        values = values + offsets_BP.gather(1, index // size)
    best_BK, where_BK = values.topk(k, dim=1)
    return best_BK, index.gather(1, where_BK)


def candidates(log_probs_BV: Tensor, *, temperature: float, top_k: int | None, top_p: float | None) -> Candidates:
    """The distribution that a token is drawn from: temperature, then `top_k`, then `top_p` of what is left.

    Every row depends on itself alone, so that a row's draw is the same in any batch.
    """
    scores_BV = log_probs_BV / temperature
    vocab_size = scores_BV.shape[1]
    if top_k is not None and top_k < vocab_size:
        values_BC, tokens_BC = stable_topk(scores_BV, top_k)
        weights_BC = (values_BC - values_BC[:, :1]).double().exp()
        return Candidates(_nucleus(weights_BC, weights_BC.sum(1, keepdim=True), top_p), tokens_BC)
    weights_BV = (scores_BV - scores_BV.amax(1, keepdim=True)).double().exp()
    if top_p is None or top_p >= 1:
        return Candidates(weights_BV, None)
    total_B1 = weights_BV.sum(1, keepdim=True)
    for guess in (*_NUCLEUS_GUESSES, vocab_size):
        sort = (
            stable_topk(scores_BV, guess)
            if guess < vocab_size
            else torch.sort(scores_BV, dim=1, stable=True, descending=True)
        )
        weights_BC = weights_BV.gather(1, sort[1])
        if guess >= vocab_size or (weights_BC.sum(1, keepdim=True) >= top_p * total_B1).all():
            break
    return Candidates(_nucleus(weights_BC, total_B1, top_p), sort[1])


def _nucleus(weights_BC: Tensor, total_B1: Tensor, top_p: float | None) -> Tensor:
    """Keep the fewest of the sorted candidates whose shares of the total add up to `top_p` (Holtzman et al., 2020)."""
    if top_p is None:
        return weights_BC
    before_BC = weights_BC.cumsum(1) - weights_BC
    return weights_BC.masked_fill(before_BC >= top_p * total_B1, 0.0)
