import pytest

from rnnlm.optim.config import OptimConfig
from rnnlm.optim.schedule import learning_rate
from rnnlm.training.budget import Budget, Plan


def test_a_plan_without_a_wall_time_is_the_plain_quotient() -> None:
    plan = Plan(300)
    assert [plan.progress(step) for step in (1, 100, 300, 301)] == [1 / 300, 100 / 300, 1.0, 1.0]


def test_a_new_plan_goes_on_from_the_progress_reached_and_ends_at_one() -> None:
    plan = Plan(1000).refit(100, 300)
    assert plan.progress(100) == pytest.approx(0.1)
    assert plan.progress(200) == pytest.approx(0.55)
    assert plan.progress(300) == 1.0
    again = plan.refit(200, 250)
    assert again.progress(200) == pytest.approx(0.55)
    assert again.progress(225) == pytest.approx(0.775)
    assert again.refit(225, 10).total_steps == 225


class Machine:
    """A clock that a simulated training moves."""

    def __init__(
        self,
        *,
        seconds: float,
        step_s: float,
        validation_s: float = 0.0,
        slower_after: int = 10**9,
        slower_until: int = 0,
    ) -> None:
        self.step_s, self.validation_s = step_s, validation_s
        self.slower_after, self.slower_until = slower_after, slower_until
        self.budget = Budget(seconds, validation_cost=validation_s / step_s / 3)
        self.elapsed_s = 0.0
        self.plan = Plan(10**6)
        self.validations = 0
        self.fits: list[float] = []
        self.progress: list[tuple[float, float]] = []

    def run(self, validate_every: int | None) -> int:
        every, step, last, fitted = validate_every or 10**5, 0, 0, None
        while True:
            step += 1
            self.elapsed_s += self.step_s * (2 if step > self.slower_after else 3 if step <= self.slower_until else 1)
            fit = self.budget.fit(step, self.elapsed_s, fitted, validate_every)
            over = self.budget.is_spent(self.elapsed_s)
            if fit:
                self.fits.append(self.elapsed_s)
                fitted = self.elapsed_s
                self.plan = self.plan.refit(step, fit.total_steps)
                self.progress.append((self.elapsed_s, self.plan.progress(step)))
                every = validate_every or max(fit.validate_every, self.plan.total_steps // 10)
            done = step >= self.plan.total_steps or over
            if done or step - last >= every:
                last = step
                self.validations += 1
                self.elapsed_s += self.validation_s
                self.budget.saw_validation(self.validation_s)
            if done:
                return step


@pytest.mark.parametrize("step_s", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("validation_s", [0.0, 1.5, 8.0])
@pytest.mark.parametrize("validate_every", [None, 20])
def test_training_ends_with_its_wall_time_and_its_schedule(
    step_s: float, validation_s: float, validate_every: int | None
) -> None:
    machine = Machine(seconds=100, step_s=step_s, validation_s=validation_s)
    step = machine.run(validate_every)
    assert machine.elapsed_s <= 100 + 2 * step_s + validation_s * 0.5
    assert machine.elapsed_s >= 100 - 2 * step_s - 1.2 * validation_s - 1
    assert machine.plan.progress(step) > 0.9
    assert machine.validations >= 1
    if validate_every is None:
        assert machine.validations * validation_s <= 0.3 * 100


def test_a_machine_that_gets_slower_still_ends_in_time_with_the_last_learning_rate() -> None:
    machine = Machine(seconds=100, step_s=0.1, slower_after=500)
    step = machine.run(None)
    assert 99 <= machine.elapsed_s <= 101
    config = OptimConfig(lr=1.0, final_lr_share=0.05)
    assert learning_rate(machine.plan.progress(step), 1.0, config) == pytest.approx(0.05, abs=0.01)


def test_slow_first_steps_do_not_hurry_the_schedule() -> None:
    machine = Machine(seconds=100, step_s=0.01, slower_until=100)
    machine.run(None)
    assert all(abs(progress - elapsed_s / 100) < 0.06 for elapsed_s, progress in machine.progress)


def test_the_first_fit_waits_for_steps_that_say_something() -> None:
    machine = Machine(seconds=100, step_s=0.5)
    machine.run(None)
    assert 2.0 <= machine.fits[0] <= 4.0
    slow = Machine(seconds=100, step_s=11.0)
    slow.run(None)
    assert slow.fits[0] == 22.0


def test_a_single_step_that_takes_all_the_time_is_the_last() -> None:
    machine = Machine(seconds=1, step_s=30.0)
    assert machine.run(None) == 1
