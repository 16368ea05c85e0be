"""Averages of the weights over the steps: exponential, or the plain mean from some step on."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """`average <- d * average + (1 - d) * weights` after every update (Polyak and Juditsky, 1992).

    The decay grows with the number of updates, `d = min(decay, (1 + n) / (10 + n))`, so that the random weights of the
    start are soon forgotten.

    Args:
        model: its parameters are followed, in place.
        decay: the largest `d`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        # Parameters, not aliases of their memory: cuDNN moves the weights into a block of its own.
        self._parameters = dict(model.named_parameters())
        self._averages = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        torch._foreach_lerp_(list(self._averages.values()), list(self._parameters.values()), 1 - self._next_decay())

    def _next_decay(self) -> float:
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        return decay

    def saw_validation(self, perplexities: Sequence[float]) -> None:
        """Told after each validation of all so far; the exponential average does not care."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the context the model has the averaged weights; afterwards its own again."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            own = parameter.detach().clone()
            parameter.copy_(self._averages[name])
            self._averages[name].copy_(own)

    def tensors(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(self._averages)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], num_updates: int) -> None:
        """Go on from the averages of a checkpoint.

        Args:
            tensors: as `tensors` gave them.
            num_updates: the attribute of that name at that time.
        """
        for name, average in self._averages.items():
            average.copy_(tensors[name])
        self.num_updates = num_updates


class TriggeredMean(WeightAverage):
    """The mean of all weights since validation stopped getting better, and until then the weights themselves.

    NT-ASGD of Merity et al. (2017), algorithm 1, https://arxiv.org/abs/1708.02182.

    Args:
        model: its parameters are followed, in place.
        patience: the algorithm's n. The mean begins after the first validation that is worse than the best of those
            more than n validations before it.
    """

    def __init__(self, model: nn.Module, patience: int) -> None:
        super().__init__(model, decay=1.0)
        self.patience = patience

    def _next_decay(self) -> float:
        # `num_updates` counts the weights in the mean; at 0 it has not begun.
        if not self.num_updates:
            return 0.0
        self.num_updates += 1
        return 1 - 1 / self.num_updates

    def saw_validation(self, perplexities: Sequence[float]) -> None:
        """Begin the mean, with the weights of now, if these are no longer better."""
        *_, last = perplexities
        before = perplexities[: -1 - self.patience]
        if not self.num_updates and before and last > min(before):
            self.num_updates = 1
