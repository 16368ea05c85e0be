"""Batches for language models: lanes of truncated backpropagation through time, and streams for evaluation.

In training, the documents of an epoch form one stream, which is cut into lanes that are read side by side, one window
after another, with the hidden state carried along. What a step reads is a function of (seed, step) alone.

Shapes: B lanes or documents of one batch, T tokens of a window.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rnnlm.data.noise import KneserNeyNoise
from rnnlm.data.permutation import DOCUMENTS, LENGTHS, WINDOWS, permutation, random_bits
from rnnlm.data.ragged import Ragged, concatenated_ranges
from rnnlm.errors import DataError
from rnnlm.text.special import EOS_ID, PAD_ID


@dataclass(frozen=True)
class LmBatch:
    """One worker's share of one window over all lanes."""

    step: int
    lanes: np.ndarray
    """Lane ids, int64 [B]; the rows that dropout and carried state are keyed by."""
    input_BT: np.ndarray
    """int64; the token before each target, `<eos>` at a document's start."""
    target_BT: np.ndarray
    """int64; 0 (`<pad>`) where a lane has no token any more."""
    num_tokens: int
    """Targets of this worker."""
    global_tokens: int
    """Targets of all workers."""
    reset: bool
    """Whether the state starts anew: the first window of an epoch."""


@dataclass(frozen=True)
class _Epoch:
    """Where the stream of one epoch takes its tokens from."""

    number: int
    order: np.ndarray
    """Documents in the order of the stream, int64 [D]."""
    starts: np.ndarray
    """Place in the stream where each of them starts, then the stream's length, int64 [D + 1]."""
    edges: np.ndarray
    """Where windows begin in a lane, then the longest lane's length, int64 [steps + 1]."""


class LmBatches:
    """The training batches of a corpus of documents, each ending in `<eos>`.

    Each epoch permutes the documents by (seed, epoch), joins them, and cuts the stream into `lanes` pieces whose lengths
    differ by one at most. Each token is a target exactly once an epoch. A window has `bptt_length` tokens; where that does
    not divide a lane, the last window is shorter, and from the second epoch on the first one may be too, so that windows
    begin at other places. With a variation their lengths differ around that (as in Merity et al. 2017, section 4.1, so
    that no token always stands first). Lane l belongs to worker l mod `world_size`. Noise, if any, is put on last.

    Args:
        tokens: the documents.
        lanes: rows of the global batch.
        bptt_length: tokens of a window.
        bptt_variation: most by which a window is longer or shorter, as a share of `bptt_length`; below 1.
        seed: of the order.
        rank: which worker this is.
        world_size: how many workers there are.
        noise: puts other tokens in the place of some.

    Raises:
        DataError: there are fewer than two tokens for each lane.
    """

    def __init__(
        self,
        tokens: Ragged,
        *,
        lanes: int,
        bptt_length: int,
        bptt_variation: float = 0.0,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        noise: KneserNeyNoise | None = None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size} workers")
        total = tokens.num_tokens
        if total < 2 * lanes:
            raise DataError(
                f"the train split has {total} tokens; data for {lanes} lanes need at least {2 * lanes}: "
                f"use fewer lanes or more text"
            )
        self._tokens = tokens
        self._bptt_length = bptt_length
        self._bptt_variation = bptt_variation
        self._seed = seed
        self._noise = noise
        bounds = np.arange(lanes + 1) * total // lanes
        self._lane_starts, self._lane_stops = bounds[:-1], bounds[1:]
        self._mine = np.arange(rank, lanes, world_size)
        self._longest = int((self._lane_stops - self._lane_starts).max())
        self._steps = -(-self._longest // bptt_length)
        self._epoch: _Epoch | None = None

    def steps_per_epoch(self, epoch: int = 0) -> int:
        """Batches of an epoch, for every epoch the same."""
        del epoch
        return self._steps

    def batch(self, step: int) -> LmBatch:
        """The batch of a global step, counted over all epochs from 0."""
        number, window = divmod(step, self._steps)
        epoch = self._plan(number)
        start, stop = epoch.edges[window : window + 2].tolist()
        starts = np.minimum(self._lane_starts + start, self._lane_stops)
        counts = np.minimum(self._lane_starts + stop, self._lane_stops) - starts
        mine = counts[self._mine]
        input_BT, target_BT = self._window(epoch, starts[self._mine], mine, stop - start)
        if self._noise is not None:
            self._noise.apply(step, self._mine, len(counts), input_BT, target_BT)
        return LmBatch(
            step=step,
            lanes=self._mine,
            input_BT=input_BT,
            target_BT=target_BT,
            num_tokens=int(mine.sum()),
            global_tokens=int(counts.sum()),
            reset=window == 0,
        )

    def _plan(self, number: int) -> _Epoch:
        """The epoch's order; the one of the latest epoch is kept."""
        if self._epoch is None or self._epoch.number != number:
            order = permutation(len(self._tokens), self._seed, number, DOCUMENTS)
            starts = np.zeros(len(order) + 1, np.int64)
            np.cumsum(self._tokens.lengths[order], out=starts[1:])
            slack = self._steps * self._bptt_length - self._longest
            shift = int(random_bits(1, self._seed, number, WINDOWS)[0]) % (slack + 1) if number else 0
            self._epoch = _Epoch(number, order, starts, self._edges(number, shift))
        return self._epoch

    def _edges(self, number: int, shift: int) -> np.ndarray:
        """Where the windows of an epoch begin and end; no window is empty."""
        inner = np.arange(1, self._steps) * self._bptt_length - shift
        if self._bptt_variation:
            draws = random_bits(len(inner), self._seed, number, LENGTHS) / 2.0**64 - 0.5
            inner = inner + np.rint(draws * self._bptt_variation * self._bptt_length).astype(np.int64)
            inner = np.maximum.accumulate(inner - np.arange(len(inner))) + np.arange(len(inner))
        first = np.arange(1, self._steps)
        inner = np.clip(inner, first, self._longest - first[::-1])
        return np.concatenate([[0], inner, [self._longest]]).astype(np.int64)

    def _window(
        self, epoch: _Epoch, starts: np.ndarray, counts: np.ndarray, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets [B, width] of the stream's ranges of `counts` tokens from `starts`."""
        # A range runs over one or more documents; each such part is contiguous in the corpus.
        first = np.searchsorted(epoch.starts, starts, "right") - 1
        last = np.searchsorted(epoch.starts, starts + counts - 1, "right") - 1
        num_parts = np.where(counts > 0, last - first + 1, 0)
        place = concatenated_ranges(first, num_parts)
        begin = np.maximum(epoch.starts[place], np.repeat(starts, num_parts))
        end = np.minimum(epoch.starts[place + 1], np.repeat(starts + counts, num_parts))
        lengths = end - begin
        origin = self._tokens.offsets[epoch.order[place]]
        index = concatenated_ranges(origin + begin - epoch.starts[place], lengths)
        inputs = self._tokens.values[index - 1]
        opens = (begin == epoch.starts[place]) & (lengths > 0)
        inputs[(np.cumsum(lengths) - lengths)[opens]] = EOS_ID
        real = np.arange(width) < counts[:, None]
        input_BT = np.full((len(starts), width), PAD_ID, np.int64)
        target_BT = input_BT.copy()
        input_BT[real] = inputs
        target_BT[real] = self._tokens.values[index]
        return input_BT, target_BT


@dataclass(frozen=True)
class StreamWindow:
    """The next window of several documents that are scored side by side, each from a fresh state."""

    rows: np.ndarray
    """Documents, int64 [B]: the first B of the window before, except after `reset`."""
    input_BT: np.ndarray
    """int64; the token before each target, `<eos>` at the start."""
    target_BT: np.ndarray
    """int64; 0 (`<pad>`) where a document has ended."""
    num_tokens: int
    reset: bool
    """Whether these are new documents. Else the state goes on, with its first B rows."""


def stream_windows(tokens: Ragged, bptt_length: int, max_rows: int) -> Iterator[StreamWindow]:
    """Yield all documents for evaluation, each token a target once, the state carried to each document's end.

    Documents go side by side in the order of their lengths, the longest first, and leave the batch where they end.

    Args:
        tokens: the documents, each ending in `<eos>`; empty ones are passed over.
        bptt_length: most tokens of a window.
        max_rows: most documents side by side.
    """
    order = np.argsort(-tokens.lengths, kind="stable")
    order = order[: np.count_nonzero(tokens.lengths)]
    for first in range(0, len(order), max_rows):
        group = order[first : first + max_rows]
        lengths = tokens.lengths[group]
        for start in range(0, int(lengths[0]), bptt_length):
            rows = group[: np.count_nonzero(lengths > start)]
            counts = np.minimum(lengths[: len(rows)] - start, bptt_length)
            yield _stream_window(tokens, rows, start, counts)


def _stream_window(tokens: Ragged, rows: np.ndarray, start: int, counts: np.ndarray) -> StreamWindow:
    real = np.arange(counts[0]) < counts[:, None]
    index = concatenated_ranges(tokens.offsets[rows] + start, counts)
    target_BT = np.full(real.shape, PAD_ID, np.int64)
    input_BT = target_BT.copy()
    target_BT[real] = tokens.values[index]
    input_BT[real] = tokens.values[index - 1]
    if start == 0:
        input_BT[:, 0] = EOS_ID
    return StreamWindow(rows, input_BT, target_BT, len(index), reset=start == 0)
