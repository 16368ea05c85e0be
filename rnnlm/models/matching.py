"""Models of equal size, so that a comparison is one of their layers."""

from bisect import bisect_left

import torch

from rnnlm.errors import UsageError
from rnnlm.models.build import build_model, num_parameters
from rnnlm.models.config import ModelConfig, TransformerConfig

TOLERANCE = 0.02
"""Share by which models that count as equally large may differ."""
_WIDEST = 65_536
_MULTIPLES = (8, 4, 2, 1)
"""Of the width, the most convenient for kernels first."""


def layer_parameters(config: ModelConfig) -> int:
    """Parameters without embeddings and without what an output layer has for each word; nothing is computed or drawn."""
    with torch.device("meta"):
        return num_parameters(build_model(config, 1))["without_embeddings"]


def matched(config: ModelConfig, wanted: int, tolerance: float = TOLERANCE) -> ModelConfig:
    """The model at the width of its layers that gives it about so many parameters without embeddings.

    That is `hidden_size`, of a Transformer `inner_width`; a model that has about as many stays as it is.

    Args:
        config: whose width is chosen.
        wanted: parameters, as `layer_parameters` counts them.
        tolerance: greatest difference as a share of the wanted ones. Half of it is aimed at, so that two models
            that were matched to a third differ by no more; a narrow one may have no width as fine as that.

    Raises:
        UsageError: no width gives so many.
    """
    name = "inner_width" if isinstance(config, TransformerConfig) else "hidden_size"

    def at(width: int) -> ModelConfig:
        return config.model_copy(update={name: width})

    def difference(some: ModelConfig) -> float:
        return abs(layer_parameters(some) / wanted - 1)

    width = 1 + bisect_left(range(1, _WIDEST), wanted, key=lambda width: layer_parameters(at(width)))
    candidates = [config]
    for multiple in _MULTIPLES:
        below = max(multiple, (width - 1) // multiple * multiple)
        candidates.append(min((at(below), at(below + multiple)), key=difference))
    for each in candidates:
        if difference(each) <= tolerance / 2:
            return each
    nearest = min(candidates, key=difference)
    if difference(nearest) <= tolerance:
        return nearest
    raise UsageError(f"model.{name}: no width gives {wanted:,} parameters (nearest: {layer_parameters(nearest):,})")
