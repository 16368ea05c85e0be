"""What is learned: a model together with its batches, for language models and for pairs.

    B rows of a worker's share (lanes or pairs), N lanes over all workers, T target length, S source length

A task knows no optimizer and no workers. Its batches are functions of the step alone, its dropout masks of the step and
the rows; all it carries from one step to the next is the language model's hidden state, which belongs to lanes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from rnnlm.data.lm_batches import LmBatch, LmBatches
from rnnlm.data.seq2seq_batches import PairBatch, PairBatches
from rnnlm.models.language_model import LanguageModel
from rnnlm.models.seq2seq import Seq2Seq
from rnnlm.nn.dropout import MaskContext
from rnnlm.nn.state import State
from rnnlm.training import names
from rnnlm.training.arithmetic import Arithmetic
from rnnlm.training.collective import Collective
from rnnlm.training.graphs import Compute, Computed, StepGraphs


class Loss(NamedTuple):
    """Of one piece of a worker's share of a batch."""

    objective: Tensor | None
    """Summed over tokens; what is minimised. None where its gradient has been taken already."""
    nats: Tensor
    """Summed -log p of the targets, float64, without gradient."""


class Pieces(NamedTuple):
    """A worker's share of a batch, to be computed piece by piece so that one piece's memory is free before the next."""

    losses: Iterator[Loss]
    """At least one; has to be run to its end."""
    global_tokens: int
    """Targets of the batch over all workers."""


@dataclass(frozen=True)
class TaskSettings:
    """What tasks of both kinds need to know."""

    seed: int
    """Of the dropout masks."""
    label_smoothing: float
    """Share of a target's probability that is spread over the vocabulary."""
    activation_reg: float
    """Cost of a language model's activations."""
    temporal_activation_reg: float
    """Cost of their change."""
    softmax_samples: int | None
    """Tokens of the vocabulary that targets are told from; None: all."""
    coverage_reg: float
    """Cost of attention that returns to where it was."""
    micro_batch_tokens: int | None
    """Most positions of a piece; None: no limit."""
    arithmetic: Arithmetic
    graphs: StepGraphs | None = None
    """On a GPU, what computes steps of shapes that come again; None: nothing does."""


def _piece(
    settings: TaskSettings, compute: Compute, arrays: Mapping[str, np.ndarray], state: State, step: int, *, whole: bool
) -> tuple[Loss, State]:
    """Compute a piece of a step.

    Args:
        settings: of the task.
        compute: the forward pass.
        arrays: its inputs, on the host.
        state: carried from the step before.
        step: which one, for dropout.
        whole: whether the piece is the whole of this worker's share.

    Returns:
        The loss, and the state after the piece.
    """
    if settings.graphs is not None and whole:
        taken = settings.graphs.take(compute, arrays, state, step)
        if taken is not None:
            return Loss(None, taken[0]), taken[1]
    inputs = {name: settings.arithmetic.tensor(array) for name, array in arrays.items()}
    with settings.arithmetic.context():
        computed = compute(inputs, state, MaskContext(settings.seed, step, inputs["rows"]))
    return Loss(computed.objective, computed.nats), computed.after


class Task(Protocol):
    """What the loop needs of a task."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        ...

    @property
    def metric(self) -> str:
        """Name of the validation's perplexity."""
        ...

    @property
    def num_valid_tokens(self) -> int:
        """Targets of a validation, over all workers; 0 where there is nothing to validate on."""
        ...

    def steps_per_epoch(self) -> int:
        """Optimizer steps of a pass over the training data."""
        ...

    def pieces(self, step: int) -> Pieces:
        """This worker's share of a step, counted from 0."""
        ...

    def validate(self) -> tuple[float, int]:
        """Nats and targets of this worker's share of the valid split."""
        ...

    def padding_share(self) -> float | None:
        """Padded positions / all positions of an epoch, where batches are padded."""
        ...

    def carried(self, collective: Collective) -> dict[str, Tensor]:
        """What is carried to the next step, of all workers: [N, ...]. Collective."""
        ...

    def load_carried(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `carried` gave, with any number of workers."""
        ...


class LanguageModelTask:
    """Truncated backpropagation through time over lanes, each with its own hidden state.

    Args:
        model: on its device.
        batches: of the train split.
        validation: of the valid split, cut into many lanes; None where there is none.
        settings: seed, smoothing, pieces, device and precision.
        num_lanes: N.
        num_valid_tokens: targets of the valid split.
    """

    metric = names.VALID_PERPLEXITY_LANED

    def __init__(
        self,
        model: LanguageModel,
        batches: LmBatches,
        validation: LmBatches | None,
        settings: TaskSettings,
        *,
        num_lanes: int,
        num_valid_tokens: int,
    ) -> None:
        self.model = model
        self.num_valid_tokens = num_valid_tokens
        self._batches = batches
        self._validation = validation
        self._num_lanes = num_lanes
        self._settings = settings
        self._arithmetic = settings.arithmetic
        self._lanes: Tensor | None = None
        self._state: State | None = None
        self._loaded: dict[str, Tensor] = {}

    def steps_per_epoch(self) -> int:
        """See `Task.steps_per_epoch`."""
        return self._batches.steps_per_epoch()

    def pieces(self, step: int) -> Pieces:
        """See `Task.pieces`."""
        batch = self._batches.batch(step)
        return Pieces(self._losses(batch), batch.global_tokens)

    def _losses(self, batch: LmBatch) -> Iterator[Loss]:
        before = self._state_before(batch)
        arrays = {"input": batch.input_BT, "target": batch.target_BT, "rows": batch.lanes}
        after = []
        num_lanes, length = batch.input_BT.shape
        ranges = _row_ranges(num_lanes, length, self._settings.micro_batch_tokens)
        for rows in ranges:
            state = before.map(lambda tensor, rows=rows: tensor[rows])  # type: ignore[misc]
            piece = {name: array[rows] for name, array in arrays.items()}
            loss, state = _piece(self._settings, self._compute, piece, state, batch.step, whole=len(ranges) == 1)
            after.append(state.detach())
            yield loss
        self._lanes = torch.from_numpy(batch.lanes)
        self._state = after[0] if len(after) == 1 else State.concatenate(after)

    def _compute(self, inputs: Mapping[str, Tensor], state: State, masks: MaskContext) -> Computed:
        return Computed(
            *self.model.loss(
                inputs["input"],
                inputs["target"],
                state,
                masks=masks,
                label_smoothing=self._settings.label_smoothing,
                activation_reg=self._settings.activation_reg,
                temporal_activation_reg=self._settings.temporal_activation_reg,
                softmax_samples=self._settings.softmax_samples,
            )
        )

    def _state_before(self, batch: LmBatch) -> State:
        if self._loaded and not batch.reset:
            lanes_B = torch.from_numpy(batch.lanes)
            loaded = {name: tensor[lanes_B] for name, tensor in self._loaded.items()}
            self._loaded = {}
            return State(loaded).to(self._arithmetic.device)
        self._loaded = {}
        if self._state is None or batch.reset:
            return self.model.init_state(len(batch.lanes))
        return self._state

    @torch.no_grad()
    def validate(self) -> tuple[float, int]:
        """See `Task.validate`. The state is carried along each lane; lanes start without context."""
        if self._validation is None:
            return 0.0, 0
        state = None
        num_tokens = 0
        total = torch.zeros((), dtype=torch.float64, device=self._arithmetic.device)
        for step in range(self._validation.steps_per_epoch()):
            batch = self._validation.batch(step)
            if state is None:
                state = self.model.init_state(len(batch.lanes))
            input_BT, target_BT = self._arithmetic.tensor(batch.input_BT), self._arithmetic.tensor(batch.target_BT)
            with self._arithmetic.context():
                _, nats, state = self.model.loss(input_BT, target_BT, state)
            total += nats
            num_tokens += batch.num_tokens
        return float(total), num_tokens

    def padding_share(self) -> float | None:
        """None: only the last windows of an epoch are padded, by less than a token a lane."""
        return None

    def carried(self, collective: Collective) -> dict[str, Tensor]:
        """See `Task.carried`: the hidden states by lane."""
        if self._loaded:
            return dict(self._loaded)
        if self._state is None or self._lanes is None:
            return {}
        return collective.gather_rows(self._state.tensors(), self._lanes, self._num_lanes)

    def load_carried(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Task.load_carried`. The next batch says which lanes are this worker's."""
        self._loaded = dict(tensors)
        self._state = self._lanes = None


class Seq2SeqTask:
    """Pairs of source and target; nothing is carried.

    Args:
        model: on its device.
        batches: of the train split.
        validation: of the valid split; None where there is none.
        settings: seed, smoothing, pieces, device and precision.
        num_valid_tokens: targets of the valid split.
    """

    metric = names.VALID_PERPLEXITY

    def __init__(
        self,
        model: Seq2Seq,
        batches: PairBatches,
        validation: PairBatches | None,
        settings: TaskSettings,
        *,
        num_valid_tokens: int,
    ) -> None:
        self.model = model
        self.num_valid_tokens = num_valid_tokens
        self._batches = batches
        self._validation = validation
        self._settings = settings
        self._arithmetic = settings.arithmetic
        self._padding_share = batches.padding_share()

    def steps_per_epoch(self) -> int:
        """See `Task.steps_per_epoch`."""
        return self._batches.steps_per_epoch()

    def pieces(self, step: int) -> Pieces:
        """See `Task.pieces`."""
        batch = self._batches.batch(step)
        return Pieces(self._losses(batch), batch.global_tokens)

    def _losses(self, batch: PairBatch) -> Iterator[Loss]:
        positions = batch.source_BS.shape[1] + batch.target_out_BT.shape[1]
        arrays = {"rows": batch.rows, **_pair_arrays(batch)}
        ranges = _row_ranges(len(batch.rows), positions, self._settings.micro_batch_tokens)
        for rows in ranges:
            piece = {name: array[rows] for name, array in arrays.items()}
            loss, _ = _piece(self._settings, self._compute, piece, State({}), batch.step, whole=len(ranges) == 1)
            yield loss

    def _compute(self, inputs: Mapping[str, Tensor], state: State, masks: MaskContext) -> Computed:
        objective, nats = self.model.loss(
            *(inputs[name] for name in PAIR_INPUTS),
            masks=masks,
            label_smoothing=self._settings.label_smoothing,
            coverage_reg=self._settings.coverage_reg,
            softmax_samples=self._settings.softmax_samples,
        )
        return Computed(objective, nats, state)

    @torch.no_grad()
    def validate(self) -> tuple[float, int]:
        """See `Task.validate`. Each target is scored given its real beginning (teacher forcing)."""
        if self._validation is None:
            return 0.0, 0
        num_tokens = 0
        total = torch.zeros((), dtype=torch.float64, device=self._arithmetic.device)
        for step in range(self._validation.steps_per_epoch()):
            batch = self._validation.batch(step)
            with self._arithmetic.context():
                inputs = {name: self._arithmetic.tensor(array) for name, array in _pair_arrays(batch).items()}
                _, nats = self.model.loss(*(inputs[name] for name in PAIR_INPUTS))
            total += nats
            num_tokens += batch.num_tokens
        return float(total), num_tokens

    def padding_share(self) -> float | None:
        """See `Task.padding_share`."""
        return self._padding_share

    def carried(self, collective: Collective) -> dict[str, Tensor]:  # noqa: ARG002
        """Nothing."""
        return {}

    def load_carried(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing."""


PAIR_INPUTS = ("source", "source_lengths", "target_in", "target_out")


def _pair_arrays(batch: PairBatch) -> dict[str, np.ndarray]:
    """What the model reads of a batch, in the order of `PAIR_INPUTS`."""
    arrays = (batch.source_BS, batch.source_lengths_B, batch.target_in_BT, batch.target_out_BT)
    return dict(zip(PAIR_INPUTS, arrays, strict=True))


def _row_ranges(num_rows: int, positions: int, limit: int | None) -> list[slice]:
    """Rows in pieces of at most `limit` positions, or one row where that alone is longer; one piece where none are."""
    size = max(num_rows, 1) if limit is None else max(1, limit // max(positions, 1))
    return [slice(start, min(start + size, num_rows)) for start in range(0, max(num_rows, 1), size)]


def valid_lanes(num_tokens: int, bptt_length: int) -> int:
    """Lanes for the quick validation: many, but each long enough for its first windows not to weigh much."""
    return int(np.clip(num_tokens // (16 * bptt_length), 1, 64))
