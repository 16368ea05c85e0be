from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from rnnlm.integrations.tune_resume import NewSettings, RememberingASHA
from rnnlm.tuning.ledger import Trial


class TuneTrial:
    """One of Tune's trials: a new id in each process."""

    def __init__(self, key: str, number: int) -> None:
        self.key = key
        self.trial_id = f"{key}-{number}"


def scheduler(past: list[Trial]) -> RememberingASHA:
    made = RememberingASHA(
        past, lambda trial: trial.key, time_attr="progress", max_t=1000, grace_period=100, reduction_factor=2,
        stop_last_trials=False,
    )  # fmt: skip
    assert made.set_search_properties("loss", "min")
    return made


def seen(key: str, *reports: tuple[int, float]) -> Trial:
    return Trial(key, 0, {}, reports=list(reports))


def report(made: RememberingASHA, trial: Any, progress: int, loss: float) -> str:
    return made.on_trial_result(None, trial, {"progress": progress, "loss": loss})


@pytest.mark.parametrize(("past", "expected"), [([], TrialScheduler.CONTINUE), ([1.0, 2.0], TrialScheduler.STOP)])
def test_a_restarted_search_compares_with_what_was_reached_before(past: list[float], expected: str) -> None:
    made = scheduler([seen(f"old{number}", (100, loss)) for number, loss in enumerate(past)])
    trial = TuneTrial("new", 0)
    made.on_trial_add(None, trial)
    assert report(made, trial, 100, 9.0) == expected


def test_a_trial_that_goes_on_is_not_measured_at_a_rung_again() -> None:
    made = scheduler([seen("a", (100, 5.0)), seen("b", (100, 1.0)), seen("c", (100, 2.0))])
    again = TuneTrial("a", 1)
    made.on_trial_add(None, again)
    assert report(made, again, 150, 5.0) == TrialScheduler.CONTINUE
    assert report(made, again, 200, 5.0) == TrialScheduler.CONTINUE  # the first at the next rung
    other = TuneTrial("b", 1)
    made.on_trial_add(None, other)
    assert report(made, other, 200, 1.0) == TrialScheduler.CONTINUE
    third = TuneTrial("c", 1)
    made.on_trial_add(None, third)
    assert report(made, third, 200, 7.0) == TrialScheduler.STOP
    made.on_trial_complete(None, third, {"progress": 200, "loss": 7.0})


class Script(Searcher):
    """Proposes what it was given, and writes down what it is told."""

    def __init__(self, *values: Any) -> None:
        super().__init__(metric="loss", mode="min")
        self.values = list(values)
        self.told: list[Any] = []

    def suggest(self, trial_id: str) -> Any:
        return {"x": self.values.pop(0)} if self.values else None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.told.append((trial_id, result))

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self.told.append((trial_id, result, error))

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...


def test_settings_that_were_tried_are_not_proposed_again() -> None:
    inner = Script(1, 2, 3, 3, 4)
    searcher = NewSettings(inner, lambda proposed: str(proposed["x"]), {"1": 0.5, "2": None})

    assert searcher.suggest("a") == {"x": 3}
    assert searcher.suggest("b") == {"x": 4}
    searcher.on_trial_result("a", {"loss": 2.0})
    searcher.on_trial_complete("b", {"loss": 3.0})

    assert inner.told == [
        ("a-0", {"loss": 0.5}, False),
        ("a-1", None, True),
        ("b-0", None, True),
        ("a-2", {"loss": 2.0}),
        ("b-1", {"loss": 3.0}, False),
    ]
    assert searcher.suggest("c") is None


def test_a_space_without_more_settings_ends_the_search() -> None:
    searcher = NewSettings(Script(*[1] * 200), lambda proposed: str(proposed["x"]), {"1": 0.5})
    assert searcher.suggest("a") == Searcher.FINISHED
