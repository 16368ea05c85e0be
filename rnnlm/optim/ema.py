"""An exponential moving average of the weights."""

from collections.abc import Iterator, Mapping
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
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        torch._foreach_lerp_(list(self._averages.values()), list(self._parameters.values()), 1 - decay)

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
