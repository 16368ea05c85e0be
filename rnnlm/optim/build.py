"""From a configuration to an optimizer and an average of the weights."""

import torch
from torch import nn

from rnnlm.optim.config import OptimConfig
from rnnlm.optim.ema import TriggeredMean, WeightAverage


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101) or plain gradient descent.

    Its learning rate is set anew before each update, see `rnnlm.optim.schedule`.
    """
    groups = decay_groups(model, config.weight_decay)
    # Fused: one pass over the weights instead of several, which also divides the gradients, see `rnnlm.training.step`.
    if config.algorithm == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, fused=True)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def build_average(model: nn.Module, config: OptimConfig) -> WeightAverage | None:
    """What follows the weights; None: nothing does."""
    if config.ema_decay is not None:
        return WeightAverage(model, config.ema_decay)
    return None if config.asgd_patience is None else TriggeredMean(model, config.asgd_patience)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameters with and without weight decay, each in the model's order; without frozen ones and empty groups.

    Only the matrices of layers decay. Biases and gains hold few values, of which zero is not the natural one. An
    embedding row gets a gradient only when its token occurs, but would decay at every update, so rare tokens would
    vanish; a tied output layer is that same matrix.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_layer = parameter.ndim >= 2 and id(parameter) not in embeddings and "embedding" not in name
        (decayed if is_layer else kept).append(parameter)
    groups = [(decayed, weight_decay), (kept, 0.0)]
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]
