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
    cut into pieces. A worker without rows takes part with zeros. What is differentiated is the sum: the optimizer divides
    by the number of targets, and clips, while it reads the gradients anyway.
    """
    run.optimizer.zero_grad(set_to_none=True)
    nats, tokens = _backward(run)
    parameters = [parameter for parameter in run.task.model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    run.collective.sum_gradients(parameters)
    grad_norm = nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None]) / tokens
    rate = learning_rate(run.state.plan.progress(run.state.step + 1), 1.0, run.optim) * run.state.rate_factor
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    # What torch's fused optimizers divide by; `torch.amp.GradScaler` hands them its factor in this way.
    run.optimizer.grad_scale = tokens * _excess(grad_norm, run.optim.clip_grad_norm)  # type: ignore[attr-defined]
    run.optimizer.step()
    if run.average is not None:
        run.average.update()
    return Update(nats, grad_norm, rate, tokens)


def _backward(run: TrainingRun) -> tuple[Tensor, int]:
    """This worker's part of the summed objective's gradient, in place; its nats, and the targets of all workers."""
    losses, tokens = run.task.pieces(run.state.window(run.state.step))
    nats = []
    for loss in losses:
        if loss.objective is not None:
            torch.autograd.backward(loss.objective)
        nats.append(loss.nats)
    return torch.stack(nats).sum(), tokens


def _excess(norm: Tensor, max_norm: float | None) -> Tensor:
    """How many times a norm is what it may be; at least once."""
    return torch.ones_like(norm) if max_norm is None else (norm / max_norm).clamp_min(1.0)
