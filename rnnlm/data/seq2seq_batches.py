"""Batches of source/target pairs of about equal lengths, under a budget of tokens.

Rows are laid out by length once, so that a batch needs little padding; an epoch shuffles the rows of equal lengths among
their places and the batches among themselves. What a step reads is a function of (seed, step) alone.

Shapes: B rows of one batch, S source length, T target length, both with `<eos>`; R rows of the corpus, K batches,
W workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rnnlm.data.permutation import BATCHES, PAIRS, permutation, random_bits
from rnnlm.data.ragged import Ragged
from rnnlm.errors import DataError
from rnnlm.text.special import EOS_ID, PAD_ID

_BAND_WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
_ROWS_TO_CHOOSE_FROM = 200_000
_ROWS_STEP = 16


@dataclass(frozen=True)
class PairBatch:
    """One worker's share of a global batch; may have no rows."""

    step: int
    rows: np.ndarray
    """Rows of the corpus, int64 [B]."""
    source_BS: np.ndarray
    """int64; each source ends in `<eos>`, then 0 (`<pad>`)."""
    source_lengths_B: np.ndarray
    """int64; with `<eos>`."""
    target_in_BT: np.ndarray
    """int64; `<eos>`, then the target."""
    target_out_BT: np.ndarray
    """int64; the target, then `<eos>`, then 0 (`<pad>`)."""
    num_tokens: int
    """Targets of this worker, `<eos>` included."""
    global_tokens: int
    """Targets of all workers."""


class PairBatches:
    """The training batches of a corpus of pairs.

    A batch has rows x (longest source + longest target) <= `batch_tokens` positions, or is a single longer row. Each pair
    comes exactly once an epoch. The rows of a global batch are sorted by length, and each worker takes a contiguous share
    of about as many tokens, padded to its own longest row. The largest batch comes first in epoch 0, so that a lack of
    memory shows at once.

    Args:
        source: the sources, without `<eos>`.
        target: the targets, as many, without `<eos>`.
        batch_tokens: most source and target positions of a global batch.
        seed: of the order.
        rank: which worker this is.
        world_size: how many workers there are.

    Raises:
        DataError: there are no pairs, or not as many sources as targets.
    """

    def __init__(
        self, source: Ragged, target: Ragged, *, batch_tokens: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size} workers")
        _check(source, target)
        self._source, self._target = source, target
        self._seed, self._rank, self._world_size = seed, rank, world_size
        lengths_S, lengths_T = source.lengths + 1, target.lengths + 1
        layout, batch_bounds = bucket(lengths_S, lengths_T, batch_tokens)
        sizes = np.diff(batch_bounds)
        batch_of_place = np.repeat(np.arange(len(sizes)), sizes)
        self._layout = layout[np.lexsort((lengths_S[layout], lengths_T[layout], batch_of_place))]
        self._source_lengths, self._target_lengths = lengths_S[self._layout], lengths_T[self._layout]
        self._bounds = _share_bounds(self._source_lengths + self._target_lengths, batch_bounds, world_size)
        self._targets_before = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._target_lengths)])
        self._num_batches = len(sizes)
        self._shape = self._target_lengths * (int(lengths_S.max()) + 1) + self._source_lengths
        self._places = np.argsort(self._shape, kind="stable")
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    def steps_per_epoch(self, epoch: int = 0) -> int:
        """Batches of an epoch, for every epoch the same."""
        del epoch
        return self._num_batches

    def padding_share(self, epoch: int = 0) -> float:
        """Padded positions / all source and target positions of an epoch, over all workers; for every epoch the same."""
        del epoch
        starts, stops = self._bounds[:-1], self._bounds[1:]
        filled = stops > starts
        padded = _padded_positions(self._source_lengths, self._target_lengths, starts[filled], stops[filled]).sum()
        real = self._source_lengths.sum() + self._target_lengths.sum()
        return float(1 - real / padded)

    def batch(self, step: int) -> PairBatch:
        """The batch of a global step, counted over all epochs from 0."""
        number, place = divmod(step, self._num_batches)
        rows, order = self._plan(number)
        first = int(order[place]) * self._world_size
        shares = self._bounds[first : first + self._world_size + 1]
        start, stop = shares[self._rank], shares[self._rank + 1]
        global_tokens = self._targets_before[shares[-1]] - self._targets_before[shares[0]]
        return _pair_batch(self._source, self._target, rows[start:stop], step, int(global_tokens))

    def _plan(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's rows by place, and its batches by step; those of the latest epoch are kept."""
        if self._epoch is None or self._epoch[0] != number:
            bits = random_bits(len(self._layout), self._seed, number, PAIRS)
            rows = np.empty_like(self._layout)
            rows[self._places] = self._layout[np.lexsort((bits, self._shape))]
            order = permutation(self._num_batches, self._seed, number, BATCHES)
            if number == 0:
                largest = self._largest()
                order = np.concatenate([[largest], order[order != largest]])
            self._epoch = (number, rows, order)
        return self._epoch[1:]

    def _largest(self) -> int:
        bounds = self._bounds[:: self._world_size]
        return int(_padded_positions(self._source_lengths, self._target_lengths, bounds[:-1], bounds[1:]).argmax())


def evaluation_batches(source: Ragged, target: Ragged, batch_tokens: int) -> Iterator[PairBatch]:
    """Yield each pair once, the longest first, in batches under the same budget; `rows` says which they are.

    Raises:
        DataError: there are no pairs, or not as many sources as targets.
    """
    _check(source, target)
    layout, bounds = bucket(source.lengths + 1, target.lengths + 1, batch_tokens)
    positions = _padded_positions(source.lengths[layout] + 1, target.lengths[layout] + 1, bounds[:-1], bounds[1:])
    longest_first = np.argsort(-(positions // np.diff(bounds)), kind="stable")
    for step, number in enumerate(longest_first):
        rows = layout[bounds[number] : bounds[number + 1]]
        yield _pair_batch(source, target, rows, step, None)


def bucket(source_lengths: np.ndarray, target_lengths: np.ndarray, batch_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Order rows by both lengths and cut them into batches with little padding.

    The rows are sorted by bands of one length, and inside a band by the other, upwards and downwards in turn. Which length
    makes the bands, and how wide they are, is what pads a part of the rows least.

    Args:
        source_lengths: positions of each source, int64 [R].
        target_lengths: positions of each target, int64 [R].
        batch_tokens: most positions of a batch, except of a single row.

    Returns:
        The rows in order, int64 [R], and the bounds of the batches in it, int64 [K + 1].
    """
    stride = -(-len(source_lengths) // _ROWS_TO_CHOOSE_FROM)
    some_S, some_T = source_lengths[::stride], target_lengths[::stride]
    choices = [(width, by_target) for width in _BAND_WIDTHS for by_target in (False, True)]
    costs = [_positions_of_choice(some_S, some_T, batch_tokens, *choice) for choice in choices]
    order = _banded_order(source_lengths, target_lengths, *choices[int(np.argmin(costs))])
    return order, _cut(source_lengths[order], target_lengths[order], batch_tokens)


def _positions_of_choice(
    source_lengths: np.ndarray, target_lengths: np.ndarray, batch_tokens: int, width: int, by_target: bool
) -> int:
    order = _banded_order(source_lengths, target_lengths, width, by_target)
    lengths_S, lengths_T = source_lengths[order], target_lengths[order]
    bounds = _cut(lengths_S, lengths_T, batch_tokens)
    return int(_padded_positions(lengths_S, lengths_T, bounds[:-1], bounds[1:]).sum())


def _banded_order(source_lengths: np.ndarray, target_lengths: np.ndarray, width: int, by_target: bool) -> np.ndarray:
    outer, inner = (target_lengths, source_lengths) if by_target else (source_lengths, target_lengths)
    band = (outer - 1) // width
    there_and_back = np.where(band % 2 == 0, inner, -inner)
    return np.lexsort((outer, there_and_back, band))


def _cut(lengths_S: np.ndarray, lengths_T: np.ndarray, batch_tokens: int) -> np.ndarray:
    """Bounds of batches over rows in order, each as long as the budget allows, int64 [K + 1]."""
    bounds = [0]
    start, total = 0, len(lengths_S)
    while start < total:
        # The longest row only grows from here, so no batch has more rows than of the first row's length.
        stop = start + max(1, batch_tokens // int(lengths_S[start] + lengths_T[start]))
        longest = np.maximum.accumulate(lengths_S[start:stop]) + np.maximum.accumulate(lengths_T[start:stop])
        positions = longest * np.arange(1, len(longest) + 1)
        start += few_rows(int(np.searchsorted(positions, batch_tokens, "right")))
        bounds.append(start)
    return np.array(bounds, np.int64)


def few_rows(most: int) -> int:
    """Rows of a batch that has room for so many: a multiple of 16; of fewer than 64, of 8, 4 or 2.

    Recurrent layers multiply a batch's rows at every step, and oneDNN compiles for each number of them anew, which may take
    longer than the products themselves; the tiles of a CPU with AMX have 16 rows.
    """
    step = min(_ROWS_STEP, max(1, 1 << most.bit_length() >> 3))
    return max(1, most - most % step)


def _share_bounds(costs: np.ndarray, batch_bounds: np.ndarray, world_size: int) -> np.ndarray:
    """Bounds of each worker's share of each batch, int64 [K * W + 1].

    A row goes to the worker in whose part of the batch's tokens its middle lies.
    """
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(costs)])
    sizes = np.diff(batch_bounds)
    first = np.repeat(before[batch_bounds[:-1]], sizes)
    total = np.repeat(np.diff(before[batch_bounds]), sizes)
    share = (2 * (before[:-1] - first) + costs) * world_size // (2 * total)
    worker = np.repeat(np.arange(len(sizes)), sizes) * world_size + share
    return np.searchsorted(worker, np.arange(len(sizes) * world_size + 1))


def _padded_positions(
    lengths_S: np.ndarray, lengths_T: np.ndarray, starts: np.ndarray, stops: np.ndarray
) -> np.ndarray:
    """Positions of each batch after padding; the batches are adjacent, and none is empty."""
    longest = np.maximum.reduceat(lengths_S, starts) + np.maximum.reduceat(lengths_T, starts)
    return np.asarray(longest * (stops - starts), np.int64)


def _check(source: Ragged, target: Ragged) -> None:
    if len(source) != len(target):
        raise DataError(f"there are {len(source)} sources, but {len(target)} targets")
    if len(source) == 0:
        raise DataError("the split has no pairs")


def _pair_batch(source: Ragged, target: Ragged, rows: np.ndarray, step: int, global_tokens: int | None) -> PairBatch:
    source_BS, source_real = _padded(source, rows)
    target_out_BT, target_real = _padded(target, rows)
    lengths_S, lengths_T = source_real.sum(1), target_real.sum(1)
    every = np.arange(len(rows))
    source_BS[every, lengths_S] = EOS_ID
    target_in_BT = np.full_like(target_out_BT, PAD_ID)
    target_in_BT[:, 0] = EOS_ID
    target_in_BT[:, 1:] = target_out_BT[:, :-1]
    target_out_BT[every, lengths_T] = EOS_ID
    num_tokens = int(lengths_T.sum()) + len(rows)
    return PairBatch(
        step=step,
        rows=rows,
        source_BS=source_BS,
        source_lengths_B=lengths_S + 1,
        target_in_BT=target_in_BT,
        target_out_BT=target_out_BT,
        num_tokens=num_tokens,
        global_tokens=num_tokens if global_tokens is None else global_tokens,
    )


def _padded(tokens: Ragged, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows side by side with room for one more token each, int64, and where they have their own."""
    lengths = tokens.lengths[rows]
    width = int(lengths.max(initial=0)) + 1
    real = np.arange(width) < lengths[:, None]
    result = np.full(real.shape, PAD_ID, np.int64)
    result[real] = tokens.gather(rows)
    return result, real
