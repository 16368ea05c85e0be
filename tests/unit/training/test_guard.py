import pytest

from rnnlm.errors import RnnlmError
from rnnlm.training.budget import Budget, Plan
from rnnlm.training.config import GuardConfig
from rnnlm.training.guard import REMEMBERED, Divergence, after, check
from rnnlm.training.history import History, StepRow
from rnnlm.training.state import TrainingState


def _history(steps: int) -> History:
    history = History()
    for step in range(1, steps + 1):
        history.append(StepRow(step, 4.0 + 0.1 * (step % 2), 0.1, 2.0, 10, 0.5))
    return history


def _row(loss: float = 4.0, norm: float = 2.0) -> StepRow:
    return StepRow(REMEMBERED + 1, loss, 0.1, norm, 10, 0.5)


def _state(**values: object) -> TrainingState:
    return TrainingState(Plan(100), 100, 10, 1, **values)  # type: ignore[arg-type]


SETTINGS = GuardConfig(loss_spike=1.0, grad_spike=10.0)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (_row(loss=5.2), "loss 5.2 after 4.05 in the steps before"),
        (_row(norm=20.5), "gradient norm 20.5 after 2 in the steps before"),
        (_row(loss=float("nan")), "loss nan"),
        (_row(norm=float("inf")), "gradient norm inf"),
    ],
)
def test_a_spike_is_a_divergence(row: StepRow, reason: str) -> None:
    with pytest.raises(Divergence, match=reason) as caught:
        check(row, _history(REMEMBERED), SETTINGS)
    assert caught.value.step == REMEMBERED + 1


def test_what_is_no_spike() -> None:
    check(_row(), _history(REMEMBERED), SETTINGS)
    check(_row(loss=99.0, norm=1e9), _history(REMEMBERED - 1), SETTINGS)
    check(_row(loss=99.0, norm=1e9), _history(REMEMBERED), GuardConfig(loss_spike=None, grad_spike=None))


def test_windows_that_are_left_out_are_passed_over() -> None:
    state = _state(skipped=[2, 3, 7])
    assert [state.window(step) for step in range(7)] == [0, 1, 4, 5, 6, 8, 9]


def test_after_a_divergence_its_window_is_left_out_at_half_the_rate() -> None:
    first = after(Divergence(5, "loss nan", 0.1), _state(step=4), _state(step=3), SETTINGS)
    assert (first.step, first.skipped, first.rate_factor) == (3, [4], 0.5)
    # Before the next checkpoint: what is known of the first one is kept. Step 5 read window 5 by then.
    second = after(Divergence(5, "loss 9", 0.1), first, _state(step=3), SETTINGS)
    assert (second.skipped, second.rate_factor) == ([4, 5], 0.25)
    assert second.divergences == ["step 5: loss nan", "step 5: loss 9"]
    assert TrainingState.from_plain(second.plain()) == second


def test_going_back_does_not_turn_the_clock_back() -> None:
    diverged = _state(step=9, elapsed_s=70.0, fitted_at_s=60.0)
    state = after(Divergence(10, "loss nan", 0.1), diverged, _state(step=3, elapsed_s=40.0, fitted_at_s=30.0), SETTINGS)
    assert (state.elapsed_s, state.fitted_at_s) == (70.0, 30.0)


def test_a_first_fit_is_not_made_again_from_all_time_over_few_steps() -> None:
    diverged = _state(step=20, elapsed_s=30.0, fitted_at_s=2.0)
    state = after(Divergence(21, "loss nan", 0.1), diverged, _state(), SETTINGS)
    budget = Budget(100.0, validation_cost=0.0)
    fits = [budget.fit(step, state.elapsed_s + step, state.fitted_at_s, None) for step in (1, 2, 3)]
    assert fits[:2] == [None, None]
    assert fits[2] is not None
    assert fits[2].total_steps == 3 + 67


def test_too_many_divergences_end_the_training() -> None:
    with pytest.raises(Divergence, match=r"diverged at step 5: loss nan; lower optim\.lr"):
        after(Divergence(5, "loss nan", 0.1), _state(), _state(), GuardConfig(max_divergences=0))
    state = _state()
    for _ in range(3):
        state = after(Divergence(5, "loss nan", 0.1), state, _state(), SETTINGS)
    with pytest.raises(RnnlmError, match=r"diverged 4 times.*step 5: loss nan; step 5.*lower optim\.lr"):
        after(Divergence(5, "loss nan", 0.1), state, _state(), SETTINGS)
