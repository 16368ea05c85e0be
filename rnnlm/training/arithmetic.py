"""Which device and which number format the model computes with."""

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from rnnlm.nn.cells import LstmCell
from rnnlm.nn.products import has_fast_bf16, is_intel
from rnnlm.nn.transformer import TransformerLayers
from rnnlm.training.config import ComputeConfig

_log = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16"]
SHAPES_VARIABLE, SHAPES_KEPT = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128"
"""oneDNN keeps what it has prepared for a shape, some megabytes of it in training, 1,024 of these by default, and batches of
sentences have hundreds of shapes. A step has a few dozen: with room for 16 it took a third longer. Read at oneDNN's first product.
"""
BF16_UNITS = 64
"""Of the narrowest LSTM that was measured to train faster in bf16."""
MOST_ERROR = 4.0
"""How many times the usual error of a product in fp32 a faster one may have; bf16 has thousands of times it."""


@dataclass(frozen=True)
class Arithmetic:
    """A device and a precision.

    Args:
        device: where weights and batches are.
        precision: of matrix products; weights, their gradients and the optimizer stay in fp32.
    """

    device: torch.device
    precision: Precision

    def context(self) -> AbstractContextManager[object]:
        """Inside it the model computes in this precision."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def tensor(self, values: np.ndarray) -> Tensor:
        """An array on the device; on a CPU the same memory."""
        return self.pinned(values).to(self.device, non_blocking=True)

    def pinned(self, values: np.ndarray) -> Tensor:
        """An array on the host, in memory from which a copy to the device does not wait for what the device is doing."""
        tensor = torch.from_numpy(values)
        return tensor if self.device.type == "cpu" else tensor.pin_memory()


def resolve(compute: ComputeConfig, device: str | torch.device, model: nn.Module) -> Arithmetic:
    """What the settings mean for a model on a device. Sets the CPU threads of this process if a number is asked for, and how
    it multiplies in fp32.
    """
    device = torch.device(device)
    if compute.threads is not None:
        torch.set_num_threads(compute.threads)
    if device.type == "cpu":
        os.environ.setdefault(SHAPES_VARIABLE, SHAPES_KEPT)
        choose_fp32_products()
    if compute.precision != "auto":
        return Arithmetic(device, compute.precision)
    precision = auto_precision(device.type, gains_from_bf16(model))
    _log.info("compute.precision = auto: %s on this %s", precision, device.type)
    return Arithmetic(device, precision)


def choose_fp32_products() -> None:
    """Let oneDNN multiply fp32 on this CPU where it is faster than torch's default, MKL, and about as exact.

    That is what torch calls "medium": on some CPUs fp32 by faster kernels, on others bf16. A product tells which. Intel's CPUs
    keep MKL, which takes its own best kernels there, and others elsewhere.
    """
    if is_intel():
        return
    before = torch.get_float32_matmul_precision()
    usual = _product_error()
    torch.set_float32_matmul_precision("medium")
    if _product_error() > MOST_ERROR * usual:
        torch.set_float32_matmul_precision(before)


def _product_error() -> float:
    """The largest error of a product of normal numbers in fp32."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 256, 256, generator=generator)
    return float((left @ right - left.double() @ right.double()).abs().max())


def auto_precision(device_type: str, gains: bool) -> Precision:
    """The faster precision of products, as far as that is known; a function of the machine and the model.

    GPUs take bf16 where they have it. A CPU takes it where its products are faster for it and the model gains.

    Args:
        device_type: as torch names it.
        gains: what `gains_from_bf16` says of the model.
    """
    if device_type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device_type == "cpu" and gains and has_fast_bf16() else "fp32"


def gains_from_bf16(model: nn.Module) -> bool:
    """Whether a model of this kind was measured to train faster in bf16 on CPUs that have it.

    A window of an LSTM of 64 to 512 units takes 0.55 to 0.7 of the time (one core without AMX), a whole training 0.6 to
    0.95; a small Transformer's training half of it. Other cells were not measured.
    """
    return any(
        isinstance(module, TransformerLayers) or (isinstance(module, LstmCell) and module.hidden_size >= BF16_UNITS)
        for module in model.modules()
    )
