"""What the workers of one training tell one another.

    W workers, N rows over all workers (lanes)

Every call is collective: all workers make it, in the same order.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from rnnlm.training.shared_sum import SharedSum


class Collective(Protocol):
    """The workers as one of them sees them."""

    rank: int
    """Number of this worker, from 0."""
    world_size: int

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over the workers, in float64, on the host."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on at least one worker."""
        ...

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace each gradient by its sum over the workers. Every parameter has a gradient."""
        ...

    def gather_rows(self, tensors: Mapping[str, Tensor], rows: Tensor, num_rows: int) -> dict[str, Tensor]:
        """Put together tensors whose first dimension is spread over the workers.

        Args:
            tensors: for each name this worker's rows, [n, ...]; names, dtypes and inner shapes agree among workers.
            rows: their numbers, [n]; each number belongs to one worker.
            num_rows: N.

        Returns:
            For each name [N, ...] on the CPU, on every worker.
        """
        ...

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite the tensors with those of worker 0."""
        ...

    def barrier(self) -> None:
        """Wait until all workers are here."""
        ...


class Alone:
    """The only worker."""

    rank = 0
    world_size = 1

    def sum(self, values: Sequence[float]) -> list[float]:
        """The values themselves."""
        return list(values)

    def any(self, flag: bool) -> bool:
        """The flag itself."""
        return flag

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Nothing: the sum has one term."""

    def gather_rows(self, tensors: Mapping[str, Tensor], rows: Tensor, num_rows: int) -> dict[str, Tensor]:
        """The rows in the order of their numbers."""
        return {name: _scatter(tensor, rows, num_rows) for name, tensor in tensors.items()}

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Nothing: they are worker 0's."""

    def barrier(self) -> None:
        """Nothing: all are here."""


class TorchCollective:
    """The workers of the default group of `torch.distributed`, which has to be initialised.

    Host values go through gloo, so that with gradients on NCCL no worker waits for its GPU to exchange them.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self._on_gpu = dist.get_backend() == "nccl"
        self._host_group = dist.new_group(backend="gloo") if self._on_gpu else None
        self._shared: SharedSum | None = None
        self._may_share = not self._on_gpu and self.world_size > 1

    def sum(self, values: Sequence[float]) -> list[float]:
        """See `Collective.sum`."""
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._host_group)
        return [float(value) for value in total.tolist()]

    def any(self, flag: bool) -> bool:
        """See `Collective.any`."""
        return self.sum([float(flag)])[0] > 0

    @torch.no_grad()
    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """See `Collective.sum_gradients`; in shared memory where all workers are on one host, else one message for all of them."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if (shared := self._shared_for(gradients)) is not None:
            shared.add_up(gradients)
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        pieces = torch.split(flat, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [piece.view_as(grad) for piece, grad in zip(pieces, gradients, strict=True)])

    def _shared_for(self, gradients: Sequence[Tensor]) -> SharedSum | None:
        num_values = sum(gradient.numel() for gradient in gradients)
        if self._may_share and (self._shared is None or self._shared.num_values != num_values):
            self._shared = SharedSum.meet(num_values)
            self._may_share = self._shared is not None
        return self._shared

    def gather_rows(self, tensors: Mapping[str, Tensor], rows: Tensor, num_rows: int) -> dict[str, Tensor]:
        """See `Collective.gather_rows`. A row is a sum with zeros from all workers but one, so it arrives unchanged."""
        gathered = {}
        for name in sorted(tensors):
            gathered[name] = _scatter(tensors[name], rows, num_rows)
            dist.all_reduce(gathered[name], group=self._host_group)
        return gathered

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """See `Collective.broadcast`."""
        for tensor in tensors:
            dist.broadcast(tensor, src=0)

    def barrier(self) -> None:
        """See `Collective.barrier`."""
        self.sum([0.0])


def _scatter(tensor: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """[n, ...] to [num_rows, ...] on the CPU, zero where this worker has no row."""
    result = torch.zeros((num_rows, *tensor.shape[1:]), dtype=tensor.dtype)
    result[rows.cpu()] = tensor.detach().cpu()
    return result
