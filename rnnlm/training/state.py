"""A training that is under way: what it consists of, and what it remembers."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor

from rnnlm.optim.config import OptimConfig
from rnnlm.optim.ema import WeightAverage
from rnnlm.training.arithmetic import Arithmetic
from rnnlm.training.budget import Plan
from rnnlm.training.collective import Collective
from rnnlm.training.config import TrainConfig
from rnnlm.training.history import Check, History, Measurements
from rnnlm.training.tasks import Task
from rnnlm.training.tracking import Point

StopReason = Literal["finished", "patience", "time", "requested"]
"""All planned steps are done; no better validation for long; the wall time is over; somebody asked."""


FEWEST_VALIDATIONS = 10
"""Validations of a training whose `validate_every` is not set, where it has fewer epochs than that."""


@dataclass
class TrainingState:
    """Numbers that say where a training stands, equal on all workers, saved as JSON."""

    plan: Plan
    max_steps: int
    """Steps that are planned by count, whatever a wall time allows."""
    validate_every: int
    """Steps between validations."""
    stride: int | None
    """Steps a logged point stands for; None until a wall time has been turned into steps."""
    step: int = 0
    """Optimizer steps done."""
    logged_step: int = 0
    """The last multiple of the stride that was logged."""
    best: float | None = None
    """Lowest perplexity of a validation."""
    best_step: int | None = None
    num_validations: int = 0
    last_validation: int = 0
    """Its step."""
    not_better: int = 0
    """Validations since the best one."""
    elapsed_s: float = 0.0
    """Wall time since the first step began, over all processes, without what a crash lost; what a divergence cost is in it."""
    fitted_at_s: float | None = None
    """`elapsed_s` when the plan was last fitted to a wall time."""
    stop: StopReason | None = None
    skipped: list[int] = field(default_factory=list)
    """Windows of data that are left out, rising; counted like steps from 0."""
    divergences: list[str] = field(default_factory=list)
    """What happened, each of which halved the learning rate."""

    def window(self, step: int) -> int:
        """The window of data that a step reads, both counted from 0."""
        for left_out in self.skipped:
            if left_out <= step:
                step += 1
        return step

    @property
    def rate_factor(self) -> float:
        """What the schedule's learning rate is multiplied by."""
        return float(0.5 ** len(self.divergences))

    @property
    def planned_steps(self) -> int:
        """Steps that the training is going to take."""
        return self.plan.total_steps

    def plain(self) -> dict[str, Any]:
        """As JSON-compatible values."""
        return asdict(self)

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `plain`."""
        return cls(**{**values, "plan": Plan(**values["plan"])})


def validation_interval(train: TrainConfig, steps_per_epoch: int, planned_steps: int) -> int:
    """Steps between validations."""
    return train.validate_every or min(steps_per_epoch, math.ceil(planned_steps / FEWEST_VALIDATIONS))


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did. Equal on all workers, times apart.

    A second report of a step tells of its validation, which a stop had come before, and has no tokens and no seconds.
    """

    step: int
    """From 1."""
    planned_steps: int
    """May change while a training is being fitted to a wall time."""
    loss_nats: float | None
    """Nats a token over the global batch; None where it is still on its way through a GPU."""
    learning_rate: float
    grad_norm: float | None
    """Before clipping; None where `loss_nats` is."""
    tokens: int
    """Real target tokens of all workers."""
    seconds: float
    """Of this step, validation apart."""
    elapsed_s: float
    """Of the whole training."""
    points: tuple[Point, ...] = ()
    """What is to be logged now, by one worker."""
    validation: dict[str, float] | None = None
    is_best: bool = False
    """The validation was the best so far."""
    checkpoint: bool = False
    """A checkpoint is due, before the next step is asked for."""
    stop: StopReason | None = None
    """Why this was the last step."""


@dataclass
class TrainingRun:
    """Everything that a training consists of. Made by `rnnlm.training.build.build_run`."""

    task: Task
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    collective: Collective
    arithmetic: Arithmetic
    train: TrainConfig
    optim: OptimConfig
    seed: int
    state: TrainingState
    history: History
    check: Check = lambda *_: None
    """Looks at each step's row for divergence."""
    measurements: Measurements = field(init=False)

    def __post_init__(self) -> None:
        self.measurements = Measurements(self.collective, self.history, self.check)

    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The model's parameters; a shared one has one name."""
        return dict(self.task.model.named_parameters())


def export_weights(run: TrainingRun) -> dict[str, Tensor]:
    """Copies on the CPU of the weights that are validated and kept: the averages where there are any."""
    tensors = run.average.tensors() if run.average else run.named_parameters()
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
