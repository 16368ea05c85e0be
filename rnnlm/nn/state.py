"""What is carried from one moment to the next: named tensors whose first dimension is the row of the batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor


class State(Mapping[str, Tensor]):
    """An immutable mapping of names to tensors of shape [B, ...], in which every row belongs to one lane or sentence.

    Layers, stacks of layers, decoders and encoded sources all use it, so that picking rows (beams, finished sentences),
    detaching (truncated backpropagation) and saving are written once. The state of a stack has names like `1.hidden`.

    Args:
        tensors: every tensor has the same first dimension B.
    """

    __slots__ = ("_tensors",)

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)
        sizes = {name: tensor.shape[0] for name, tensor in self._tensors.items()}
        assert len(set(sizes.values())) <= 1, f"rows differ: {sizes}"

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def num_rows(self) -> int:
        """B, the number of rows; 0 where there is no tensor at all."""
        return next((tensor.shape[0] for tensor in self._tensors.values()), 0)

    def map(self, function: Callable[[Tensor], Tensor]) -> "State":
        """The state with a function applied to every tensor."""
        return State({name: function(tensor) for name, tensor in self._tensors.items()})

    def select(self, rows_R: Tensor) -> "State":
        """The rows at the given indices, in that order; an index may occur many times."""
        return self.map(lambda tensor: tensor.index_select(0, rows_R))

    def detach(self) -> "State":
        """The same values, cut from the graph."""
        return self.map(Tensor.detach)

    def to(self, device: torch.device | str) -> "State":
        """The same values on a device."""
        return self.map(lambda tensor: tensor.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, for saving."""
        return dict(self._tensors)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "State":
        """The inverse of `tensors`."""
        return cls(tensors)

    def part(self, name: str) -> "State":
        """The state that was joined under a name."""
        prefix = f"{name}."
        return State({key[len(prefix) :]: value for key, value in self._tensors.items() if key.startswith(prefix)})

    @staticmethod
    def join(parts: Sequence["State"]) -> "State":
        """One state of several: the i-th gets the name `i`."""
        return State({f"{i}.{name}": tensor for i, part in enumerate(parts) for name, tensor in part.items()})

    @staticmethod
    def concatenate(states: Sequence["State"]) -> "State":
        """All rows of states with the same names, one state below the other."""
        return State({name: torch.cat([state[name] for state in states]) for name in states[0]})
