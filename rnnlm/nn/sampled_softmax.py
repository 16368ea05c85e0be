"""Cross-entropy with a sample of the vocabulary in the sum that normalizes it, for training where that sum costs most.

Token v is in a step's sample S with probability pi_v = min(1, c / (v + 1)), which suits ids that rise as tokens get rarer
(Zipf's law): frequent tokens always are, rare ones now and then. For a target t

    -log p(t) = log Z_t - y_t,  Z_t = exp(y_t) + sum_{v in S, v != t} exp(y_v) / pi_v

where Z_t is on average the sum over the whole vocabulary (Horvitz and Thompson 1952), and depends on no other target, so that
a row's loss is the same in any batch. The correction of logits by -log pi is that of Bengio and Senecal (2008). The mean of all
logits, which label smoothing needs, is estimated from the same tokens, each weighed by 1 / pi (Hajek 1971): with the exact
one, which pushes all tokens up in every step, Adam moves those that are seldom drawn too far. Scoring and decoding use the
whole sum: a model has nothing of this in it.

Shapes: N tokens, E width of the features, V vocabulary, K tokens of it that are drawn.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

from rnnlm.nn.dropout import MaskContext, uniform
from rnnlm.nn.softmax import Clusters, Copying, Sample, linear_cross_entropy

COLUMNS = 16
"""Products are fastest with a multiple of so many."""
NEVER = -1e30
"""A logit, finite, of what has no probability."""


def cross_entropy(
    features_NE: Tensor,
    weight_VE: Tensor,
    bias_V: Tensor,
    target_N: Tensor,
    *,
    samples: int | None,
    masks: MaskContext | None,
    site: int,
    clusters: Clusters | None = None,
    copying: Copying | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`sampled_cross_entropy` in a training with fewer samples than tokens, else `rnnlm.nn.softmax.linear_cross_entropy`.

    Raises:
        ValueError: a sample of a vocabulary with clusters.
    """
    layer, smoothing = (features_NE, weight_VE, bias_V, target_N), label_smoothing
    if samples is None or masks is None or samples >= len(bias_V):
        return linear_cross_entropy(*layer, clusters=clusters, copying=copying, label_smoothing=smoothing)
    if clusters is not None:
        raise ValueError("a vocabulary with clusters is not sampled")
    return sampled_cross_entropy(
        *layer, size=samples, masks=masks, site=site, copying=copying, label_smoothing=smoothing
    )


def sampled_cross_entropy(
    features_NE: Tensor,
    weight_VE: Tensor,
    bias_V: Tensor,
    target_N: Tensor,
    *,
    size: int,
    masks: MaskContext,
    site: int,
    copying: Copying | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """As `rnnlm.nn.softmax.linear_cross_entropy`, over a sample that is a function of (seed, step).

    Args:
        features_NE: what the output layer reads.
        weight_VE: its weights.
        bias_V: its bias.
        target_N: token ids, 0 for padding.
        size: K, from 1 to V.
        masks: seed and step.
        site: number of the place in the network.
        copying: the other part of a mixture.
        label_smoothing: share of a target's probability that is spread over the vocabulary.

    Returns:
        The objective, a scalar with a gradient, and the nats of each token [N], which are estimates.
    """
    device = target_N.device
    log_pi_V = _design(weight_VE.shape[0], size, device)[1]
    ids_K = drawn(weight_VE.shape[0], size, uniform(masks, site, device))
    # One look-up, so that there is one gradient like the table.
    rows = nn.functional.embedding(torch.cat([ids_K, target_N]), weight_VE)
    own_N = (features_NE * rows[size:]).sum(1) + bias_V[target_N]
    # The columns after these, of which there is one at least, have no weight; the first stands in for targets not drawn.
    spare = COLUMNS - size % COLUMNS
    place_V = torch.full_like(log_pi_V, size, dtype=torch.int64)
    place_V[ids_K] = torch.arange(size, device=device)
    offset_K = -log_pi_V[ids_K]
    share_K = offset_K.softmax(0)
    sample = Sample(
        own_N, place_V[target_N], nn.functional.pad(share_K, (0, spare)), mean_offset=(share_K * offset_K).sum()
    )
    weight_KE = nn.functional.pad(rows[:size], (0, 0, 0, spare))
    bias_K = nn.functional.pad(bias_V[ids_K] + offset_K, (0, spare), value=NEVER)
    return linear_cross_entropy(
        features_NE, weight_KE, bias_K, target_N, copying=copying, sample=sample, label_smoothing=label_smoothing
    )


def drawn(vocab_size: int, size: int, start: Tensor) -> Tensor:
    """The token ids [K] of a systematic sample: steps of 1 over the sum of all pi, from a start in [0, 1), float64."""
    cumulative_V, _ = _design(vocab_size, size, start.device)
    points_K = start + torch.arange(size, device=start.device)
    return torch.searchsorted(cumulative_V, points_K, right=True).clamp_max_(vocab_size - 1)


@lru_cache(maxsize=8)
def _design(vocab_size: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """pi_0 + ... + pi_v, float64, and log pi, both [V]. Bisection finds the c for which the sum of all pi is K."""
    share_V = 1.0 / torch.arange(1, vocab_size + 1, dtype=torch.float64)
    low, high = 0.0, float(vocab_size)
    for _ in range(60):
        middle = (low + high) / 2
        if float((middle * share_V).clamp_max_(1.0).sum()) < size:
            low = middle
        else:
            high = middle
    pi_V = (high * share_V).clamp_max_(1.0)
    return pi_V.cumsum(0).to(device), pi_V.log().float().to(device)
