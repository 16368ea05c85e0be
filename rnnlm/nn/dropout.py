"""Dropout whose masks are a pure function of (seed, step, site, row), not of a generator that is drawn from in turn.

So a row gets the same mask in whatever batch, piece of a batch or worker it is computed, and a training that is resumed
goes on with the masks that it would have had. Masks are locked (variational, Gal and Ghahramani 2016): one for a row
and a site, the same at all times. They cost one hash per row and feature, not one random number per activation.

Shapes: B rows of the batch, T time, X features, V vocabulary.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MOST_SITES = 1_024

Keys = tuple[int, int] | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class MaskContext:
    """What a mask depends on.

    Args:
        seed: the experiment's seed.
        step: the global training step, so that masks change from step to step.
        rows: int64 [B], the identity of each row of the batch (lane or row number), not its position.
        table: where seed and step are on the device, for a computation that is recorded once and repeated with others.
    """

    seed: int
    step: int
    rows: Tensor
    table: "KeyTable | None" = None

    def keys(self, site: int) -> Keys:
        """Two int32 keys of a place in the network at this step."""
        return _keys(self.seed, self.step, site) if self.table is None else self.table.keys(site)

    def of(self, rows_B: Tensor) -> "MaskContext":
        """The same for other rows."""
        return replace(self, rows=rows_B)


class KeyTable:
    """The keys of all places in the network that were asked for, on a device.

    Args:
        device: of the masks.
    """

    def __init__(self, device: torch.device) -> None:
        self._rows: dict[int, int] = {}
        self._keys_S2 = torch.zeros(_MOST_SITES, 2, dtype=torch.int32, device=device)

    def keys(self, site: int) -> tuple[Tensor, Tensor]:
        """Scalars that hold the keys of a place once they are filled in."""
        row = self._rows.setdefault(site, len(self._rows))
        return self._keys_S2[row, 0], self._keys_S2[row, 1]

    def fill(self, seed: int, step: int) -> None:
        """Set all keys to those of a step."""
        values_S2 = torch.tensor([_keys(seed, step, site) for site in self._rows], dtype=torch.int32).view(-1, 2)
        if self._keys_S2.is_cuda:
            values_S2 = values_S2.pin_memory()
        self._keys_S2[: len(self._rows)].copy_(values_S2, non_blocking=True)


def _mix_number(value: int) -> int:
    """One round of the 64-bit finalizer of SplitMix64 (Steele et al. 2014), on a Python number."""
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)


def _signed(word: int) -> int:
    """The number of 32 bits as int32 reads it."""
    word &= _WORD
    return word - (1 << 32) if word >> 31 else word


def _keys(seed: int, step: int, site: int) -> tuple[int, int]:
    """Two int32 keys of a place in the network at a step."""
    value = _mix_number(_mix_number(_mix_number(seed) ^ step) ^ site)
    return _signed(value), _signed(value >> 32)


def uniform(context: MaskContext, site: int, device: torch.device) -> Tensor:
    """A number from [0, 1), float64, for a place in the network at a step, the same for all rows."""
    key = torch.as_tensor(context.keys(site)[0], dtype=torch.int64, device=device)
    return (key & _WORD).double() / 2**32


def _mix(bits: Tensor) -> Tensor:
    """A bijection of int32 that spreads every input bit over all output bits ("lowbias32", Wellons 2018); in place."""
    bits ^= (bits >> 16) & 0xFFFF
    bits *= _signed(0x7FEB352D)
    bits ^= (bits >> 15) & 0x1FFFF
    bits *= _signed(0x846CA68B)
    bits ^= (bits >> 16) & 0xFFFF
    return bits


def _uniform_bits(rows_B: Tensor, num_features: int, keys: Keys) -> Tensor:
    """Hashed int32 [B, X], uniform over all 2^32 values."""
    low_B = (rows_B & _WORD).to(torch.int32)
    high_B = (rows_B >> 32).to(torch.int32)
    row_B = _mix(_mix(low_B ^ keys[0]) ^ high_B)
    feature_X = _mix(torch.arange(num_features, dtype=torch.int32, device=rows_B.device) ^ keys[1])
    return _mix(row_B[:, None] ^ feature_X)


def _kept(bits: Tensor, share: float, dtype: torch.dtype) -> Tensor:
    """0 for a share of the values, and 1 / (1 - share) for the others."""
    threshold = round(share * 2**32) - 2**31
    return (bits >= threshold).to(dtype).mul_(1 / (1 - share))


def locked_mask(
    num_features: int, share: float, context: MaskContext, site: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The mask [B, X] of the rows at a site: 0 for `share` of the features, 1 / (1 - share) for the others."""
    return _kept(_uniform_bits(context.rows, num_features, context.keys(site)), share, dtype)


def locked_dropout(x_BTX: Tensor, share: float, context: MaskContext | None, site: int) -> Tensor:
    """Drop `share` of the features of each row at all times alike; nothing without a context (evaluation).

    Args:
        x_BTX: activations.
        share: from 0 to below 1.
        context: seed, step and the rows' identities.
        site: number of the place in the network; two places with one number would get one mask.
    """
    if context is None or not share:
        return x_BTX
    mask_BX = locked_mask(x_BTX.shape[2], share, context, site, x_BTX.dtype)
    return x_BTX * mask_BX.to(x_BTX.device)[:, None]


def dropout(x_BTX: Tensor, share: float, context: MaskContext | None, site: int) -> Tensor:
    """Drop `share` of the activations, at each time others; nothing without a context. Arguments as `locked_dropout`.

    The mask is a function of (seed, step, site, row, place in the window).
    """
    if context is None or not share:
        return x_BTX
    length = x_BTX.shape[1]
    # Rows and places count apart: 2^24 places of a window are more than fit into memory.
    places_BT = (context.rows[:, None] << 24) + torch.arange(length, device=context.rows.device)
    mask_NX = locked_mask(x_BTX.shape[2], share, context.of(places_BT.reshape(-1)), site, x_BTX.dtype)
    return x_BTX * mask_NX.view(-1, length, x_BTX.shape[2]).to(x_BTX.device)


def type_mask(vocab_size: int, share: float, context: MaskContext, site: int, device: torch.device) -> Tensor:
    """The mask [V] that drops whole word types for a step, the same for all rows (embedding dropout)."""
    everyone = torch.zeros(1, dtype=torch.int64, device=device)
    return _kept(_uniform_bits(everyone, vocab_size, context.keys(site)), share, torch.float32)[0]


def matrix_mask(weight_GH: Tensor, share: float, context: MaskContext, site: int) -> Tensor:
    """A mask like a matrix of weights that drops `share` of its elements for a step, the same for all rows of a batch.

    Source: weight drop of Merity et al. (2017), after DropConnect (Wan et al. 2013).
    """
    every_row = context.of(torch.arange(weight_GH.shape[0], device=weight_GH.device))
    return locked_mask(weight_GH.shape[1], share, every_row, site, weight_GH.dtype)
