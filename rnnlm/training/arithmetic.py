"""Which device and which number format the model computes with."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rnnlm.training.config import ComputeConfig


@dataclass(frozen=True)
class Arithmetic:
    """A device and a precision.

    Args:
        device: where weights and batches are.
        precision: of matrix products; weights, their gradients and the optimizer stay in fp32.
    """

    device: torch.device
    precision: Literal["fp32", "bf16"]

    def context(self) -> AbstractContextManager[object]:
        """Inside it the model computes in this precision."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def tensor(self, values: np.ndarray) -> Tensor:
        """An array on the device; on a CPU the same memory."""
        tensor = torch.from_numpy(values)
        if self.device.type == "cpu":
            return tensor
        # From pinned memory the copy does not wait for what the device is doing.
        return tensor.pin_memory().to(self.device, non_blocking=True)


def resolve(compute: ComputeConfig, device: str | torch.device) -> Arithmetic:
    """What the settings mean on a device. Sets the CPU threads of this process if a number is asked for."""
    device = torch.device(device)
    if compute.threads is not None:
        torch.set_num_threads(compute.threads)
    if compute.precision != "auto":
        return Arithmetic(device, compute.precision)
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return Arithmetic(device, "bf16" if has_bf16 else "fp32")
