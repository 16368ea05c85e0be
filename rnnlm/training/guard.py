"""Watches a training for divergence, and says how it goes on after one.

A loss or gradient that is not finite, or far above those of the last steps, ends the loop with a `Divergence`. Whoever runs
the loop may then go back to a checkpoint from before, with `after`: the window of that step is left out, the learning rate
is halved, and products are in fp32.
"""

import math
from dataclasses import replace
from statistics import fmean, median

from rnnlm.errors import RnnlmError
from rnnlm.training.config import GuardConfig
from rnnlm.training.history import History, StepRow
from rnnlm.training.state import TrainingState

REMEMBERED = 100
"""Steps that a new one is compared with; before there are as many nothing counts as a spike."""


class Divergence(RnnlmError):
    """A training that no longer learns.

    Attributes:
        step: the first bad step.
        reason: what was seen there.
    """

    def __init__(self, step: int, reason: str, learning_rate: float) -> None:
        super().__init__(
            f"training diverged at step {step}: {reason}; lower optim.lr (now {learning_rate:.3g}) or optim.clip_grad_norm"
        )
        self.step = step
        self.reason = reason


def check(row: StepRow, history: History, settings: GuardConfig) -> None:
    """Compare a step with those before it.

    Args:
        row: the step.
        history: all before it.
        settings: what counts as a spike.

    Raises:
        Divergence: it is not finite, or a spike.
    """
    step, loss, norm = int(row.step), row.loss_nats, row.grad_norm
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise Divergence(step, f"loss {loss:.4g}, gradient norm {norm:.4g}", row.learning_rate)
    if len(history) < REMEMBERED:
        return
    last = history.columns(len(history) - REMEMBERED)
    usual = fmean(last["loss_nats"])
    if settings.loss_spike is not None and loss > usual + settings.loss_spike:
        raise Divergence(step, f"loss {loss:.4g} after {usual:.4g} in the steps before", row.learning_rate)
    usual = median(last["grad_norm"])
    if settings.grad_spike is not None and norm > settings.grad_spike * usual > 0:
        raise Divergence(step, f"gradient norm {norm:.4g} after {usual:.4g} in the steps before", row.learning_rate)


def after(
    divergence: Divergence, diverged: TrainingState, restored: TrainingState, settings: GuardConfig
) -> TrainingState:
    """Where a training goes on from, otherwise than it went before.

    Args:
        divergence: what happened.
        diverged: the state in which it did.
        restored: the state of a checkpoint from before; of a new training where there is none.
        settings: how much is borne.

    Raises:
        RnnlmError: it has happened too often.
    """
    times = [*diverged.divergences, f"step {divergence.step}: {divergence.reason}"]
    if len(times) > settings.max_divergences:
        if len(times) == 1:
            raise divergence
        raise RnnlmError(
            f"training diverged {len(times)} times, although the learning rate was halved each time ({'; '.join(times)}); "
            "lower optim.lr or optim.clip_grad_norm"
        )
    skipped = sorted({*diverged.skipped, diverged.window(divergence.step - 1)})
    # The clock goes on. A first fit to the wall time may divide it by the steps done, which are fewer now: none is due again.
    fitted_at_s = diverged.fitted_at_s if restored.fitted_at_s is None else restored.fitted_at_s
    return replace(restored, skipped=skipped, divergences=times, elapsed_s=diverged.elapsed_s, fitted_at_s=fitted_at_s)
