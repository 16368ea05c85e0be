import math

import pytest

from rnnlm.optim.config import OptimConfig
from rnnlm.optim.schedule import learning_rate


def rates(total: int, **settings: object) -> list[float]:
    config = OptimConfig(lr=1.0, **settings)
    return [learning_rate(step, total, config) for step in range(1, total + 1)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_warm_up_is_linear_from_zero(schedule: str) -> None:
    assert rates(100, schedule=schedule, warmup_share=0.1)[:10] == pytest.approx([k / 10 for k in range(1, 11)])


@pytest.mark.parametrize(("schedule", "last"), [("cosine", 0.25), ("linear", 0.25), ("constant", 1.0)])
def test_last_step_has_the_final_share(schedule: str, last: float) -> None:
    found = rates(50, schedule=schedule, final_lr_share=0.25, warmup_share=0.2)
    assert found[-1] == pytest.approx(last)
    assert max(found) == pytest.approx(1.0)
    assert found[9:] == sorted(found[9:], reverse=True)


def test_cosine_is_half_way_in_the_middle() -> None:
    config = OptimConfig(lr=2.0, schedule="cosine", warmup_share=0.0, final_lr_share=0.0)
    assert learning_rate(50, 100, config) == pytest.approx(1.0)
    assert learning_rate(25, 100, config) == pytest.approx(1 + math.cos(math.pi / 4))


def test_linear_without_warm_up() -> None:
    config = OptimConfig(lr=1.0, schedule="linear", warmup_share=0.0, final_lr_share=0.5)
    assert learning_rate(50, 100, config) == pytest.approx(0.75)


def test_only_the_quotient_counts_and_the_ends_hold() -> None:
    config = OptimConfig(lr=1.0)
    assert learning_rate(0.3, 1.0, config) == learning_rate(30, 100, config)
    assert learning_rate(120, 100, config) == learning_rate(100, 100, config)
