"""Perplexity of a language model that adapts to the text while it is scored.

Every token is still predicted from the tokens before it alone, but what the model has read changes more than its state, so
such a figure compares with others of its kind only and always stands beside the plain one.

Shapes: B documents side by side, T tokens of a window, C cache, K = C + T, X features.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnnlm.data.lm_batches import stream_windows
from rnnlm.data.ragged import Ragged
from rnnlm.evaluation.config import CacheConfig, DynamicConfig
from rnnlm.models.language_model import LanguageModel
from rnnlm.nn.state import State

_WINDOW = 256
_NOWHERE = -1
"""What stands where a cache is not filled: no token has this id."""


def score_with_cache(
    model: LanguageModel, tokens: Ragged, settings: CacheConfig, *, max_rows: int = 16
) -> NDArray[np.float64]:
    """Nats of each document under a mixture with the neural cache of Grave et al. (2016), https://arxiv.org/abs/1612.04426.

        p(v) = (1 - w) p_model(v) + w sum_{i < t: x_{i+1} = v} softmax_i(theta h_t^T h_i)

    where i runs over the last C positions of the same document, and h is what the output layer reads; w is 0 where there are none.

    Args:
        model: in evaluation mode.
        tokens: the documents, each ending in `<eos>`.
        settings: C, theta, w.
        max_rows: documents side by side; changes speed, not results.
    """
    nats = np.zeros(len(tokens))
    state, cache = model.init_state(0), State({})
    for rows, input_BT, target_BT, is_new in _windows(model, tokens, _WINDOW, max_rows):
        if is_new:
            state, cache = model.init_state(len(rows)), _empty_cache(model, len(rows), settings.size)
        elif len(rows) < state.num_rows:
            kept = torch.arange(len(rows), device=input_BT.device)
            state, cache = state.select(kept), cache.select(kept)
        with torch.no_grad():
            features_BTX, after = model(input_BT, state)
            nats_BT, _ = model.token_nats(input_BT, target_BT, state)
            copied_BT, filled_BT, cache = _from_cache(features_BTX.float(), target_BT, cache, settings)
        state = after
        weight_BT = settings.weight * filled_BT.double()
        mixed_BT = (1 - weight_BT) * torch.exp(-nats_BT.double()) + weight_BT * copied_BT.double()
        nats[rows] += (-mixed_BT.log() * (target_BT != 0)).sum(1).cpu().numpy()
    return nats


def score_dynamically(model: LanguageModel, tokens: Ragged, settings: DynamicConfig) -> NDArray[np.float64]:
    """Nats of each document under dynamic evaluation (Krause et al. 2018), https://arxiv.org/abs/1709.07432.

    After each window was scored, one step of gradient descent on its mean loss, and one back towards the weights of
    before: `W <- W - lr * gradient + decay * (W_0 - W)`. Every document starts with the model's own weights, which it has
    again at the end.

    Args:
        model: in evaluation mode.
        tokens: the documents, each ending in `<eos>`.
        settings: lr, decay, tokens of a window.
    """
    nats = np.zeros(len(tokens))
    parameters = list(model.parameters())
    own = [parameter.detach().clone() for parameter in parameters]
    state = model.init_state(0)
    try:
        for rows, input_BT, target_BT, is_new in _windows(model, tokens, settings.window, 1):
            if is_new:
                _restore(parameters, own)
                state = model.init_state(1)
            with torch.enable_grad():
                objective, window_nats, state = model.loss(input_BT, target_BT, state.detach())
                gradients = torch.autograd.grad(objective / target_BT.numel(), parameters, allow_unused=True)
            nats[rows] += float(window_nats)
            with torch.no_grad():
                for parameter, before, gradient in zip(parameters, own, gradients, strict=True):
                    parameter.lerp_(before, settings.decay)
                    if gradient is not None:
                        parameter.sub_(gradient, alpha=settings.lr)
    finally:
        _restore(parameters, own)
    return nats


def _windows(
    model: LanguageModel, tokens: Ragged, length: int, max_rows: int
) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor, bool]]:
    """Documents, inputs and targets of each window, and whether the documents are new."""
    device = next(model.parameters()).device
    for part in stream_windows(tokens, length, max_rows):
        input_BT, target_BT = (torch.from_numpy(array).to(device) for array in (part.input_BT, part.target_BT))
        yield part.rows, input_BT, target_BT, part.reset


def _empty_cache(model: LanguageModel, num_rows: int, size: int) -> State:
    weight_VX = model.output_weight
    features_BCX = weight_VX.new_zeros(num_rows, size, weight_VX.shape[1], dtype=torch.float32)
    tokens_BC = torch.full((num_rows, size), _NOWHERE, dtype=torch.int64, device=weight_VX.device)
    return State({"features": features_BCX, "tokens": tokens_BC})


def _from_cache(
    features_BTX: Tensor, target_BT: Tensor, cache: State, settings: CacheConfig
) -> tuple[Tensor, Tensor, State]:
    """What the cache gives to each target and whether it holds anything there, both [B, T]; the cache with the window in it."""
    size, length = settings.size, target_BT.shape[1]
    keys_BKX = torch.cat([cache["features"], features_BTX], dim=1)
    tokens_BK = torch.cat([cache["tokens"], target_BT], dim=1)
    scores_BTK = settings.theta * torch.bmm(features_BTX, keys_BKX.transpose(1, 2))
    # Position t stands at C + t among the keys, and sees the C before it.
    distance_TK = torch.arange(length)[:, None] + size - torch.arange(size + length)
    near_TK = ((distance_TK >= 1) & (distance_TK <= size)).to(target_BT.device)
    seen_BTK = near_TK & (tokens_BK != _NOWHERE)[:, None]
    weights_BTK = torch.softmax(scores_BTK.masked_fill(~seen_BTK, -torch.inf), dim=-1).nan_to_num(0.0)
    copied_BT = (weights_BTK * (tokens_BK[:, None] == target_BT[..., None])).sum(-1)
    return copied_BT, seen_BTK.any(-1), State({"features": keys_BKX[:, -size:], "tokens": tokens_BK[:, -size:]})


@torch.no_grad()
def _restore(parameters: list[torch.nn.Parameter], own: list[Tensor]) -> None:
    for parameter, before in zip(parameters, own, strict=True):
        parameter.copy_(before)
