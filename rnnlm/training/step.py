"""One optimizer step: forward, backward, a sum over the workers, an update."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rnnlm.optim.schedule import learning_rate
from rnnlm.training.state import TrainingRun


class Update(NamedTuple):
    """What a step leaves behind on this worker."""

    nats: Tensor
    """Of this worker's targets, float64."""
    grad_norm: Tensor
    """Of the whole gradient, before clipping."""
    learning_rate: float
    tokens: int
    """Targets of all workers."""


def take_step(run: TrainingRun) -> Update:
    """Take the next step of a run; `run.state.step` is left to the caller. Collective.

    The loss is the mean over the targets of all workers, so the gradient does not depend on how they were shared out or
    cut into pieces. A worker without rows takes part with zeros.
    """
    run.optimizer.zero_grad(set_to_none=True)
    nats, tokens = _backward(run)
    parameters = [parameter for parameter in run.task.model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    run.collective.sum_gradients(parameters)
    grad_norm = _clip(parameters, run.optim.clip_grad_norm)
    rate = learning_rate(run.state.plan.progress(run.state.step + 1), 1.0, run.optim) * run.state.rate_factor
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.step()
    if run.average is not None:
        run.average.update()
    return Update(nats, grad_norm, rate, tokens)


def _backward(run: TrainingRun) -> tuple[Tensor, int]:
    """This worker's gradient, in place; its nats, and the targets of all workers."""
    losses, tokens = run.task.pieces(run.state.window(run.state.step))
    nats = []
    for loss in losses:
        torch.autograd.backward(loss.objective / tokens)
        nats.append(loss.nats)
    return torch.stack(nats).sum(), tokens


def _clip(parameters: list[nn.Parameter], max_norm: float | None) -> Tensor:
    """Scale the gradients down to a norm; the norm that they had."""
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    # On a GPU nobody waits to see whether scaling is needed.
    if max_norm is not None and (norm.is_cuda or norm > max_norm):
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
