"""From a configuration to an optimizer and an average of the weights."""

import torch
from torch import nn

from rnnlm.optim.config import OptimConfig
from rnnlm.optim.ema import TriggeredMean, WeightAverage


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101) or plain gradient descent.

    Its learning rate is set anew before each update, see `rnnlm.optim.schedule`.
    """
    groups = decay_groups(model, config.weight_decay, config.embedding_decay)
    # Fused: one pass over the weights instead of several, which also divides the gradients, see `rnnlm.training.step`.
    if config.algorithm == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, fused=True)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def build_average(model: nn.Module, config: OptimConfig) -> WeightAverage | None:
    """What follows the weights; None: nothing does."""
    if config.ema_decay is not None:
        return WeightAverage(model, config.ema_decay)
    return None if config.asgd_patience is None else TriggeredMean(model, config.asgd_patience)


def decay_groups(model: nn.Module, weight_decay: float, embedding_decay: float) -> list[dict[str, object]]:
    """Layers' matrices, everything else, and tables where they decay, each in the model's order; without frozen ones and
    empty groups.

    Biases and gains never decay: they hold few values, of which zero is not the natural one. An embedding row gets a
    gradient only when its token occurs, but decays at every update, so the tables have a decay of their own. A tied
    output layer is that same matrix.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    layers: list[nn.Parameter] = []
    tables: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_table = id(parameter) in embeddings or (parameter.ndim >= 2 and "embedding" in name)
        if is_table:
            (tables if embedding_decay else others).append(parameter)
        else:
            (layers if parameter.ndim >= 2 else others).append(parameter)
    groups = [(layers, weight_decay), (others, 0.0), (tables, embedding_decay)]
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]
