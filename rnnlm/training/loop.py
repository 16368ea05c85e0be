"""The training loop: a generator that yields a report after every optimizer step.

Whoever asks for the next report decides what is done with the last one: log its points, save a checkpoint, show progress.
The same loop runs on a CPU, on a GPU and on many workers; what these tell one another goes through a `Collective`.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

from rnnlm.training.budget import Budget
from rnnlm.training.history import Measured
from rnnlm.training.names import PADDING_SHARE
from rnnlm.training.state import StepReport, StopReason, TrainingRun, validation_interval
from rnnlm.training.step import Update, take_step
from rnnlm.training.tracking import MAX_POINTS, MetricStride, Point

MOST_PENDING = 50
"""Steps whose losses may wait on a GPU before they are fetched."""
STRIDE_HEADROOM = 4
"""A stride that is fixed by the first fit to a wall time gives `MAX_POINTS` if speed so much grows; the planned steps grow no more
than that."""


def training_steps(run: TrainingRun, *, stop_requested: Callable[[], bool] = lambda: False) -> Iterator[StepReport]:
    """Train until the planned steps are done, validation gets no better, the wall time is over, or somebody asks.

    At every yield the state of the run is consistent, so that a checkpoint can be saved. Collective: all workers iterate
    in step, and a stop that one of them is asked for stops all.

    A stop that is asked for comes before the validation that is due after its step. Whoever takes the run up begins with
    that validation, in a second report of the same step, so that all goes on as if nobody had asked.

    Args:
        run: new, or loaded from a checkpoint; one that has come to its end yields nothing.
        stop_requested: asked once a step; when it says so, the report of that step is the last.

    Raises:
        RnnlmError: a loss or a gradient is not finite.
    """
    if run.state.stop not in (None, "requested"):
        return
    run.state.stop = None
    loop = _Loop(run, stop_requested)
    if loop.validation_is_due():
        yield loop.make_up()
    while run.state.stop is None:
        yield loop.advance()


class _Agreed(NamedTuple):
    """What all workers know after a step."""

    stop: float
    """Workers that were asked to stop."""
    checkpoint: float
    """Whether one is due by the clock."""
    out_of_time: float
    total_steps: float
    """Of a plan that was fitted to the wall time; 0: there is no new one."""
    validate_every: float
    """The fewest steps between validations under that plan."""


class _Loop:
    """One process's part in a training. Worker 0 looks at the clock, for all."""

    def __init__(self, run: TrainingRun, stop_requested: Callable[[], bool]) -> None:
        self._run = run
        self._stop_requested = stop_requested
        self._started = time.perf_counter() - run.state.elapsed_s
        self._checkpointed = time.perf_counter()
        self._budget: Budget | None = None
        run.task.model.train()

    def advance(self) -> StepReport:
        """Take a step and find out what follows from it."""
        run, state = self._run, self._run.state
        begun = time.perf_counter()
        update = take_step(run)
        state.step += 1
        pulls = self._pulls()
        seconds = self._measure(update, begun, pulls)
        agreed = self._agree(update, pulls)
        self._adopt(agreed)
        state.stop = self._reason(agreed)
        validation, is_best = self._validate() if self.validation_is_due() else (None, False)
        checkpoint = bool(agreed.checkpoint) or validation is not None or state.stop is not None
        if checkpoint:
            self._checkpointed = time.perf_counter()
            run.measurements.pull()
        return self._report(
            update.learning_rate, update.tokens, seconds, validation=validation, is_best=is_best, checkpoint=checkpoint
        )

    def make_up(self) -> StepReport:
        """The validation that was left out when the run stopped at this step, whose tokens and time were told then.

        No checkpoint is due, unless training ends here: whoever goes on from the one of this step validates again.
        """
        run = self._run
        validation, is_best = self._validate()
        rate, is_end = run.history.last().learning_rate, run.state.stop is not None
        return self._report(rate, 0, 0.0, validation=validation, is_best=is_best, checkpoint=is_end)

    def _report(
        self,
        learning_rate: float,
        tokens: int,
        seconds: float,
        *,
        validation: dict[str, float] | None,
        is_best: bool,
        checkpoint: bool,
    ) -> StepReport:
        """What the last step did, and where the run stands now."""
        run, state = self._run, self._run.state
        row = run.history.last() if not run.measurements else None
        state.elapsed_s = self._elapsed_s()
        return StepReport(
            step=state.step,
            planned_steps=state.planned_steps,
            loss_nats=row.loss_nats if row else None,
            learning_rate=learning_rate,
            grad_norm=row.grad_norm if row else None,
            tokens=tokens,
            seconds=seconds,
            elapsed_s=state.elapsed_s,
            points=self._points(validation),
            validation=validation,
            is_best=is_best,
            checkpoint=checkpoint,
            stop=state.stop,
        )

    def _elapsed_s(self) -> float:
        return time.perf_counter() - self._started

    def _pulls(self) -> bool:
        """Whether the values of this step are fetched from the device now; the same on all workers."""
        run = self._run
        if run.arithmetic.device.type == "cpu" or len(run.measurements) + 1 >= MOST_PENDING:
            return True
        return run.state.stride is not None and run.state.step % run.state.stride == 0

    def _measure(self, update: Update, begun: float, pulls: bool) -> float:
        """Take note of the step; its seconds."""
        if pulls:
            # Waits for the device, so that the time of the steps that it had in its queue is counted.
            float(update.nats)
        seconds = time.perf_counter() - begun
        rate, tokens = update.learning_rate, update.tokens
        self._run.measurements.add(Measured(self._run.state.step, update.nats, update.grad_norm, rate, tokens, seconds))
        return seconds

    def _agree(self, update: Update, pulls: bool) -> _Agreed:
        """One small sum over the workers, which also completes the step's loss where that has arrived."""
        run = self._run
        nats = run.measurements.local_nats() if pulls else []
        said = (0.0, 0.0, 0.0, 0.0) if run.collective.rank else self._look_at_clock(update)
        sums = run.collective.sum([float(self._stop_requested()), *said, *nats])
        if nats:
            run.measurements.complete(sums[len(_Agreed._fields) :])
        return _Agreed(*sums[: len(_Agreed._fields)])

    def _look_at_clock(self, update: Update) -> tuple[float, float, float, float]:
        """What worker 0 says of `_Agreed`: checkpoint, out of time, planned steps, steps between validations."""
        run, state = self._run, self._run.state
        is_due = time.perf_counter() - self._checkpointed >= run.train.checkpoint_every_s
        if run.train.max_minutes is None:
            return float(is_due), 0.0, 0.0, 0.0
        if self._budget is None:
            # Without a backward pass a token takes about half as long at most.
            cost = run.task.num_valid_tokens / (2 * update.tokens)
            self._budget = Budget(60 * run.train.max_minutes, cost)
        elapsed_s = self._elapsed_s()
        fit = self._budget.fit(state.step, elapsed_s, state.fitted_at_s, run.train.validate_every)
        is_over = self._budget.is_spent(elapsed_s)
        return float(is_due), float(is_over), fit.total_steps if fit else 0, fit.validate_every if fit else 0

    def _adopt(self, agreed: _Agreed) -> None:
        """Follow a plan that was fitted to the wall time."""
        if not agreed.total_steps:
            return
        run, state = self._run, self._run.state
        most_steps = state.max_steps if state.stride is None else min(state.max_steps, state.stride * MAX_POINTS)
        state.plan = state.plan.refit(state.step, min(int(agreed.total_steps), most_steps))
        state.fitted_at_s = self._elapsed_s()
        if state.stride is None:
            most_steps = min(STRIDE_HEADROOM * state.planned_steps, state.max_steps)
            state.stride = MetricStride.for_steps(most_steps).stride
        if run.train.validate_every is None:
            usual = validation_interval(run.train, run.task.steps_per_epoch(), state.planned_steps)
            state.validate_every = max(usual, int(agreed.validate_every))

    def _reason(self, agreed: _Agreed) -> StopReason | None:
        if self._run.state.step >= self._run.state.planned_steps:
            return "finished"
        if agreed.stop:
            return "requested"
        return "time" if agreed.out_of_time else None

    def validation_is_due(self) -> bool:
        """Whether a validation is due after the last step and was not made."""
        state = self._run.state
        if not self._run.task.num_valid_tokens or state.stop == "requested":
            return False
        return state.stop is not None or state.step - state.last_validation >= state.validate_every

    def _validate(self) -> tuple[dict[str, float], bool]:
        """Score the valid split with the weights that would be kept; whether it is the best so far."""
        run, state = self._run, self._run.state
        begun = time.perf_counter()
        run.task.model.eval()
        with run.average.applied() if run.average else nullcontext():
            nats, tokens = run.collective.sum(run.task.validate())
        run.task.model.train()
        if self._budget is not None:
            self._budget.saw_validation(time.perf_counter() - begun)
        # Above e^700 a float ends, and so does the use of the figure.
        perplexity = math.exp(min(nats / tokens, 700.0))
        is_best = state.best is None or perplexity < state.best
        state.num_validations, state.last_validation = state.num_validations + 1, state.step
        state.not_better = 0 if is_best else state.not_better + 1
        if is_best:
            state.best, state.best_step = perplexity, state.step
        if state.stop is None and run.train.patience is not None and state.not_better >= run.train.patience:
            state.stop = "patience"
        run.history.validations.append({"step": state.step, run.task.metric: perplexity})
        if run.average:
            run.average.saw_validation([each[run.task.metric] for each in run.history.validations])
        return {run.task.metric: perplexity}, is_best

    def _points(self, validation: dict[str, float] | None) -> tuple[Point, ...]:
        """What has become complete and is to be logged."""
        run, state = self._run, self._run.state
        points = []
        if state.stride is not None:
            points = MetricStride(state.stride).points(run.history, state.logged_step)
            state.logged_step = points[-1].step if points else state.logged_step
        every = math.ceil(state.planned_steps / state.validate_every / MAX_POINTS)
        if validation is not None and state.num_validations % max(every, 1) == 0:
            padding = run.task.padding_share()
            points.append(Point(state.step, validation if padding is None else validation | {PADDING_SHARE: padding}))
        return tuple(points)
