"""The full series of a training: a row for every step, kept in its checkpoints."""

from array import array
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rnnlm.training.collective import Collective


class StepRow(NamedTuple):
    """What happened in one step, over all workers."""

    step: float
    """From 1."""
    loss_nats: float
    """Nats a token."""
    learning_rate: float
    grad_norm: float
    tokens: float
    """Real target tokens."""
    seconds: float
    """Wall time, validation apart."""


class History:
    """Rows of all steps so far, in order and without a gap, and the validations among them."""

    def __init__(self) -> None:
        self._columns = {name: array("d") for name in StepRow._fields}
        self.validations: list[dict[str, float]] = []
        """`step` and the metrics of each validation."""

    def __len__(self) -> int:
        return len(self._columns["step"])

    def append(self, row: StepRow) -> None:
        """Add the row of the next step."""
        for name, value in row._asdict().items():
            self._columns[name].append(value)

    def last(self) -> StepRow:
        """The newest row."""
        return StepRow(*(column[-1] for column in self._columns.values()))

    def columns(self, start: int = 0, end: int | None = None) -> dict[str, list[float]]:
        """The rows from `start` (0 is step 1) up to, not including, `end`, column by column."""
        return {name: column[start:end].tolist() for name, column in self._columns.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The columns as float64 [steps], for saving."""
        return {name: torch.tensor(column, dtype=torch.float64) for name, column in self._columns.items()}

    def load(self, tensors: Mapping[str, Tensor], validations: list[dict[str, float]]) -> None:
        """Take over what a checkpoint holds."""
        self._columns = {name: array("d", tensors[name].tolist()) for name in StepRow._fields}
        self.validations = list(validations)


Check = Callable[[StepRow, History], None]


class Measured(NamedTuple):
    """A step of which this worker's values may still be on its way through a GPU."""

    step: int
    nats: Tensor
    """Of this worker's tokens, float64."""
    grad_norm: Tensor
    learning_rate: float
    tokens: int
    """Of all workers."""
    seconds: float


class Measurements:
    """Turns measured steps into rows of the history: at once on a CPU, on a GPU only when they are asked for.

    Args:
        collective: the workers, whose nats are summed.
        history: where the rows go.
        check: looks at each row, with the history before it, and raises where it shows a divergence.
    """

    def __init__(self, collective: Collective, history: History, check: Check = lambda *_: None) -> None:
        self.history = history
        self._check = check
        self._collective = collective
        self._pending: list[Measured] = []

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, measured: Measured) -> None:
        """Take note of a step."""
        self._pending.append(measured)

    def local_nats(self) -> list[float]:
        """This worker's nats of each pending step; waits for the device."""
        return [float(value) for value in torch.stack([row.nats for row in self._pending]).tolist()]

    def pull(self) -> None:
        """Complete all pending rows. Collective: every worker calls it after the same step."""
        if self._pending:
            self.complete(self._collective.sum(self.local_nats()))

    def complete(self, global_nats: list[float]) -> None:
        """Write all pending rows.

        Args:
            global_nats: for each of them the sum of `local_nats` over the workers.

        Raises:
            RnnlmError: what `check` raises.
        """
        norms = torch.stack([row.grad_norm for row in self._pending]).tolist()
        for row, nats, norm in zip(self._pending, global_nats, norms, strict=True):
            loss = nats / max(row.tokens, 1)
            complete = StepRow(row.step, loss, row.learning_rate, norm, row.tokens, row.seconds)
            self._check(complete, self.history)
            self.history.append(complete)
        self._pending.clear()
