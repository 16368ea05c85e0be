"""The learning rate as a function of how much of the training is done."""

import math

from rnnlm.optim.config import OptimConfig


def learning_rate(step: float, total_steps: float, config: OptimConfig) -> float:
    """The rate of one update.

    Args:
        step: number of the update, from 1 (the first one) to `total_steps` (the last one). Any pair with the right
            quotient will do: a training that is fitted to a wall time gives its progress, and 1 as the total.
        total_steps: planned updates.
        config: highest rate, shares of warm-up and of the end, shape between them.

    Returns:
        `lr * p / warmup_share` for a progress `p = step / total_steps` inside the warm-up, then the shape from `lr` down
        to `lr * final_lr_share` at `p = 1` (a constant one stays at `lr`). The cosine is that of Loshchilov and Hutter (2017),
        eq. 5, without restarts (https://arxiv.org/abs/1608.03983).
    """
    progress = min(max(step / total_steps, 0.0), 1.0)
    if progress < config.warmup_share:
        return config.lr * progress / config.warmup_share
    done = (progress - config.warmup_share) / (1 - config.warmup_share)
    match config.schedule:
        case "constant":
            share = 1.0
        case "linear":
            share = 1 - (1 - config.final_lr_share) * done
        case "cosine":
            share = config.final_lr_share + (1 - config.final_lr_share) * 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * share
