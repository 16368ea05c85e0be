"""Few shapes for oneDNN, which compiles its kernels anew for each shape that it meets.

In bf16 on a CPU with AMX that takes 5 to 50 ms a product, which itself may take one. Numbers of tokens differ from batch to
batch, so products over them get rows of zeros up to one of few numbers. In fp32 torch mostly asks another library, and on a
GPU kernels serve any shape: there nothing is added.

Shapes: N rows, P rows with those that were added.
"""

import torch
from torch import Tensor, nn

LEAST_STEP = 16


def few(num_rows: int, least_step: int = LEAST_STEP) -> int:
    """The next of about eight sizes from any number to its double, multiples of `least_step`: 3 % more rows on average, at most
    an eighth or `least_step - 1`.
    """
    step = max(least_step, 1 << max(num_rows.bit_length() - 4, 0))
    return -(-num_rows // step) * step


def product_rows(num_rows: int, dtype: torch.dtype, device: torch.device) -> int:
    """P of a product in this type, on this device; N where any number is as good."""
    return few(num_rows) if dtype == torch.bfloat16 and device.type == "cpu" else num_rows


def padded(x_NX: Tensor, num_rows: int) -> Tensor:
    """With rows of zeros to so many, [P, X]; the same tensor where it has them."""
    missing = num_rows - x_NX.shape[0]
    return nn.functional.pad(x_NX, (*[0] * (2 * x_NX.dim() - 1), missing)) if missing else x_NX
