"""A sum over workers of one host in memory that all of them map, instead of messages between them.

gloo sends every byte through the network stack, loopback or not. Here each worker writes its values into a slot of its own, adds up
one part of all slots, and reads the sums of all parts.

    W workers, N values
"""

import contextlib
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

NAME_BYTES = 256
"""Room for what worker 0 tells the others of its memory."""


class SharedSum:
    """Adds tensors up over the workers of the default group of `torch.distributed`. Every call is collective.

    Terms are added in the order of the workers, so that all get the same sums.

    Args:
        memory: room for W + 1 times N fp32 values, mapped by all workers.
        num_values: N.
    """

    def __init__(self, memory: mmap.mmap, num_values: int) -> None:
        workers = dist.get_world_size()
        *self._slots_N, self._sum_N = torch.frombuffer(memory, dtype=torch.float32).view(workers + 1, num_values)
        self._rank = dist.get_rank()
        part = -(-num_values // workers)
        self._part = slice(self._rank * part, min(num_values, (self._rank + 1) * part))
        self.num_values = num_values

    @classmethod
    def meet(cls, num_values: int) -> "SharedSum | None":
        """Collective. None where the workers are not all on one host, or the host has no such memory to share."""
        size = 4 * num_values * (dist.get_world_size() + 1)
        with contextlib.ExitStack() as stack:
            name = torch.zeros(NAME_BYTES, dtype=torch.uint8)
            if dist.get_rank() == 0 and (path := _create(size, stack)):
                written = f"{_host()} {path}".encode()
                name[: len(written)] = torch.tensor(list(written), dtype=torch.uint8)
            dist.broadcast(name, src=0)
            memory = _open(bytes(name.tolist()).rstrip(b"\0").decode(), size)
            all_have_it = torch.tensor(float(memory is not None))
            dist.all_reduce(all_have_it, op=dist.ReduceOp.MIN)
        return cls(memory, num_values) if memory is not None and all_have_it else None

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of N values in all by their sums."""
        torch.cat([tensor.reshape(-1) for tensor in tensors], out=self._slots_N[self._rank])
        _barrier()
        first, second, *others = (slot[self._part] for slot in self._slots_N)
        total = torch.add(first, second, out=self._sum_N[self._part])
        for other in others:
            total += other
        # Nobody writes sums before all have read these: the next ones come after the next barrier.
        _barrier()
        pieces = self._sum_N.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(list(tensors), [piece.view_as(each) for piece, each in zip(pieces, tensors, strict=True)])


def _barrier() -> None:
    dist.all_reduce(torch.zeros(()))


def _host() -> str:
    """This host, and the processes that are seen from here."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"


def _create(size: int, stack: contextlib.ExitStack) -> str | None:
    """Memory without a name in any file system, so that it goes with its users; a path for others, valid within the context."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        descriptor = os.memfd_create("rnnlm-gradients")
        stack.callback(os.close, descriptor)
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        return None
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def _open(name: str, size: int) -> mmap.mmap | None:
    """The memory that worker 0 speaks of, where it is of this host."""
    host, _, path = name.rpartition(" ")
    try:
        if not path or host != _host():
            return None
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        return mmap.mmap(descriptor, size)
    except OSError:
        return None
    finally:
        os.close(descriptor)
