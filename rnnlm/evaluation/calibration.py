"""How sure a language model should be: one factor on its logits, fitted on text that it was not trained on.

A model that has read its training text many times is too sure of itself on other text. Temperature scaling (Guo et al. 2017,
https://arxiv.org/abs/1706.04599, section 4.2) leaves what it prefers and changes how much. Here the biases, which tell how
frequent tokens are, stay as they are.

Shapes: B lanes, T time, N tokens, X width of what the output layer reads.
"""

import numpy as np
import torch
from torch import Tensor

from rnnlm.data.ragged import Ragged
from rnnlm.models.language_model import LanguageModel
from rnnlm.nn.softmax import linear_cross_entropy

TOKENS = 1 << 15
"""Read at most: they tell one number well."""
LANES = 16
WINDOW = 256
LOWEST, HIGHEST = 0.25, 4.0
TOLERANCE = 1e-3
_MOST_ROUNDS = 20


def best_logit_scale(model: LanguageModel, tokens: Ragged) -> float:
    """The s for which the mean of -log softmax(s W h + b) is least over a text.

    It is convex in s, as logits are linear in it (with clusters it is a sum of such), so the zero of its slope is
    looked for, by the secant method.

    Args:
        model: in evaluation mode.
        tokens: the valid split; its first `TOKENS` are read as a few lanes of one stream.

    Returns:
        s, from `LOWEST` to `HIGHEST`, to about `TOLERANCE`; 1 where there are not two tokens for a lane.
    """
    length = min(tokens.num_tokens, TOKENS) // LANES
    if length < 2:
        return 1.0
    lanes_BT = torch.from_numpy(np.array(tokens.values[: length * LANES], np.int64)).view(LANES, length)
    features_NX, target_N = _read(model, lanes_BT.to(model.output_bias.device))

    def slope(scale: float) -> float:
        factor = torch.tensor(scale, device=features_NX.device, requires_grad=True)
        with torch.enable_grad():
            objective, _ = linear_cross_entropy(
                features_NX * factor, model.output_weight, model.output_bias, target_N, clusters=model.clusters
            )
        return float(torch.autograd.grad(objective, factor)[0])

    before, scale = 1.0, 0.95
    slope_before = slope(before)
    for _ in range(_MOST_ROUNDS):
        slope_here = slope(scale)
        if slope_here == slope_before:
            break
        following = scale - slope_here * (scale - before) / (slope_here - slope_before)
        before, slope_before, scale = scale, slope_here, min(max(following, LOWEST), HIGHEST)
        if abs(scale - before) < TOLERANCE:
            break
    return scale


@torch.no_grad()
def _read(model: LanguageModel, lanes_BT: Tensor) -> tuple[Tensor, Tensor]:
    """What the output layer reads at each token but a lane's last, [N, X], and the token that follows, [N]."""
    input_BT, target_BT = lanes_BT[:, :-1], lanes_BT[:, 1:]
    state = model.init_state(len(lanes_BT))
    parts = []
    for start in range(0, input_BT.shape[1], WINDOW):
        features_BTX, state = model(input_BT[:, start : start + WINDOW], state)
        parts.append(features_BTX)
    return torch.cat(parts, 1).flatten(0, 1), target_BT.reshape(-1)
