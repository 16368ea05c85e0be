"""Matrix products with weights that never change, for decoding on a CPU, in fp32, bf16 or int8.

What is multiplied lies in (-1, 1): hidden states of an LSTM, means of them, outputs of a tanh. It is carried from product
to product in the type that the precision works in (`carry`); products give fp32. In int8 a carried value is a multiple of
1/127 whatever is in the batch, weights have a scale for each output, and sums are exact, so that a row's product is the
same in any batch. It is carried without a sign, as CPUs multiply unsigned by signed bytes (VNNI): for two signed ones oneDNN
has a fast product only with AMX, and hundreds of times slower reference code elsewhere.

Shapes: N rows, I inputs, O outputs.
"""

from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["fp32", "bf16", "int8"]
STEP = 1 / 127
"""The distance of two carried values of int8."""
ZERO = 128
"""The byte that stands for 0."""
_HALF_UP = torch.tensor(ZERO + 0.5)
LEAST_ROWS = 8 if torch.cpu._is_amx_tile_supported() else 1
"""Of a product in int8: with AMX oneDNN gives small ones (a few hundred values, or one row) to its reference code, which can take
hundreds of times as long as the product of eight rows.
"""


def has_bf16() -> bool:
    """Whether this CPU has instructions for bf16; without them oneDNN's LSTM raises."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_intel() -> bool:
    """Whether Intel made this CPU."""
    return str(torch.cpu.get_capabilities().get("cpu_name", "")).startswith("Intel")


def has_fast_bf16() -> bool:
    """Whether products in bf16 take less time than in fp32 on this CPU.

    They do with AMX. With AVX-512's instructions for bf16 alone they take half the time on AMD's CPUs (Zen 4 and 5), but
    twice the time on an Intel Xeon whose AMX a virtual machine hides. Without any, oneDNN imitates them.
    """
    return bool(torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and not is_intel()))


def supports(precision: Precision) -> bool:
    """Whether this CPU has instructions for it."""
    match precision:
        case "fp32":
            return True
        case "bf16":
            return has_bf16()
        case "int8":
            return bool(torch.cpu._is_vnni_supported()) and torch.backends.mkldnn.is_available()


def carry(x: Tensor, precision: Precision) -> Tensor:
    """Values in (-1, 1), fp32, in the type in which products of a precision read them; may be the same tensor."""
    match precision:
        case "fp32":
            return x
        case "bf16":
            return x.to(torch.bfloat16)
        case "int8":
            return _byte(torch.add(_HALF_UP, x, alpha=127))


def carry_twice(a: Tensor, b: Tensor, precision: Precision) -> Tensor:
    """2 a b, as `carry` gives it."""
    if precision == "int8":
        return _byte(torch.addcmul(_HALF_UP, a, b, value=2 * 127))
    return carry(torch.mul(a, b).mul_(2), precision)


def _byte(x: Tensor) -> Tensor:
    """The integer part of what is in [0, 256); torch takes two to three times as long where it does this in one step."""
    return x.to(torch.int32).to(torch.uint8)


def uncarry(x: Tensor) -> Tensor:
    """Carried values in fp32."""
    return x.float().sub_(ZERO).mul_(STEP) if x.dtype == torch.uint8 else x.float()


class Product:
    """x W^T + b.

    Args:
        weight_OI: W.
        bias_O: b; None for zero.
        precision: of the product. The bias is added in fp32, but for bf16, where it is rounded together with the product.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, precision: Precision) -> None:
        weight_OI = weight_OI.detach().float()
        self.precision = precision
        self._bias_O = None if bias_O is None else bias_O.detach().float()
        match precision:
            case "fp32":
                self._weight = weight_OI
            case "bf16":
                self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI.to(torch.bfloat16))
                self._bias_O = None if bias_O is None else bias_O.detach().to(torch.bfloat16)
            case "int8":
                scale_O = weight_OI.abs().amax(1).clamp_min(1e-30) / 127
                quantized_OI = (weight_OI / scale_O[:, None]).round().to(torch.int8)
                self._weight = torch.ops.onednn.qlinear_prepack(quantized_OI, None)
                self._scale_O = scale_O
                self._zero_O = torch.zeros(len(scale_O), dtype=torch.int32)

    def __call__(self, x_NI: Tensor) -> Tensor:
        """The product [N, O] in fp32, of carried values."""
        match self.precision:
            case "fp32":
                return torch.nn.functional.linear(x_NI, self._weight, self._bias_O)
            case "bf16":
                return self._bf16(x_NI).float()
            case "int8":
                return self._int8(x_NI, "none", 1, 0, torch.float32)

    def tanh(self, x_NI: Tensor) -> Tensor:
        """Tanh of the product, carried."""
        match self.precision:
            case "fp32":
                return self(x_NI).mul_(2).sigmoid_().mul_(2).sub_(1)
            case "bf16":
                return self._bf16(x_NI, "tanh")
            case "int8":
                return self._int8(x_NI, "tanh", 127, ZERO, torch.uint8)

    def add_to(self, sum_NO: Tensor, x_NI: Tensor) -> Tensor:
        """The product added to `sum_NO`, fp32, in place."""
        match self.precision:
            case "fp32":
                if self._bias_O is not None:
                    sum_NO.add_(self._bias_O)
                return sum_NO.addmm_(x_NI, self._weight.t())
            case "bf16":
                return sum_NO.add_(self._bf16(x_NI))
            case "int8":
                both_NO = _enough_rows(sum_NO)
                torch.ops.onednn.qlinear_pointwise.binary(
                    _enough_rows(x_NI), STEP, ZERO, self._weight, self._scale_O, self._zero_O, both_NO, self._bias_O,
                    1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "",
                )  # fmt: skip
                return sum_NO if both_NO is sum_NO else sum_NO.copy_(both_NO[: len(sum_NO)])

    def _bf16(self, x_NI: Tensor, function: str = "none") -> Tensor:
        made_NO: Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, self._weight, self._bias_O, function, [], "")
        return made_NO

    def _int8(self, x_NI: Tensor, function: str, scale: float, zero: int, dtype: torch.dtype) -> Tensor:
        made_NO: Tensor = torch.ops.onednn.qlinear_pointwise(
            _enough_rows(x_NI), STEP, ZERO, self._weight, self._scale_O, self._zero_O, self._bias_O,
            1 / scale, zero, dtype, function, [], "",
        )  # fmt: skip
        return made_NO[: len(x_NI)]


class NormalizedProduct:
    """W n(x) + b, n being a layer norm (Ba et al. 2016, https://arxiv.org/abs/1607.06450), of carried values x.

    n(x) = gamma (x - mean(x)) / sd(x) + beta has no bounds, but x has. So x is multiplied, and the result divided by sd(x):
    W n(x) = W' x / sd(x) + W beta, where W' is W gamma less the mean of each of its rows, which takes mean(x) out.

    Args:
        norm: n.
        weight_OI: W.
        bias_O: b.
        precision: of the product.
    """

    def __init__(self, norm: nn.LayerNorm, weight_OI: Tensor, bias_O: Tensor, precision: Precision) -> None:
        weight_OI = weight_OI.detach().float()
        scaled_OI = weight_OI * norm.weight.detach().float()
        self._product = Product(scaled_OI - scaled_OI.mean(1, keepdim=True), None, precision)
        self._bias_O = bias_O.detach().float() + weight_OI @ norm.bias.detach().float()
        self._eps = norm.eps

    def __call__(self, x_NI: Tensor) -> Tensor:
        """The product [N, O] in fp32, of carried values."""
        variance_N1 = uncarry(x_NI).var(1, correction=0, keepdim=True)
        return self._product(x_NI).mul_(variance_N1.add_(self._eps).rsqrt_()).add_(self._bias_O)


def _enough_rows(x: Tensor) -> Tensor:
    """The same rows, and others below them where they are too few."""
    missing = LEAST_ROWS - len(x)
    return x if missing <= 0 else torch.nn.functional.pad(x, (0, 0, 0, missing))
