import random

import pytest

from rnnlm.training import names
from rnnlm.training.history import History, StepRow
from rnnlm.training.tracking import MAX_POINTS, MemoryTracker, MetricStride


def history_of(num_steps: int) -> History:
    history = History()
    draw = random.Random(1)
    for step in range(1, num_steps + 1):
        tokens, seconds = draw.randint(1, 9), draw.uniform(0.1, 1)
        history.append(StepRow(step, draw.uniform(1, 9), draw.uniform(0, 1), draw.uniform(0, 2), tokens, seconds))
    return history


@pytest.mark.parametrize(("num_steps", "stride"), [(1, 1), (1000, 1), (1001, 2), (2000, 2), (123_456, 124)])
def test_stride_gives_at_most_a_thousand_points(num_steps: int, stride: int) -> None:
    assert MetricStride.for_steps(num_steps).stride == stride
    assert num_steps // stride <= MAX_POINTS


def test_points_are_means_with_the_loss_weighted_by_tokens() -> None:
    history = History()
    history.append(StepRow(1, loss_nats=1.0, learning_rate=0.1, grad_norm=2.0, tokens=30, seconds=2.0))
    history.append(StepRow(2, loss_nats=5.0, learning_rate=0.3, grad_norm=4.0, tokens=10, seconds=3.0))
    (point,) = MetricStride(2).points(history, 0)
    assert point.step == 2
    assert point.metrics == pytest.approx(
        {names.TRAIN_LOSS: 2.0, names.LEARNING_RATE: 0.2, names.GRAD_NORM: 3.0, names.TOKENS_PER_SECOND: 8.0}
    )


def test_every_multiple_once_however_often_one_asks() -> None:
    whole = history_of(23)
    stride, logged, points = MetricStride(5), 0, []
    growing = History()
    for step in range(1, 24):
        columns = whole.columns(step - 1, step)
        growing.append(StepRow(**{name: values[0] for name, values in columns.items()}))
        new = stride.points(growing, logged)
        logged = new[-1].step if new else logged
        points += new
    assert [point.step for point in points] == [5, 10, 15, 20]
    assert points == stride.points(whole, 0)
    assert stride.points(whole, 20) == []


def test_memory_tracker_keeps_the_first_value_of_a_step() -> None:
    tracker = MemoryTracker()
    tracker.log({"a": 1.0, "b": 2.0}, 5)
    tracker.log({"a": 9.0}, 5)
    tracker.log({"a": 3.0}, 6)
    tracker.flush()
    assert tracker.values == {"a": {5: 1.0, 6: 3.0}, "b": {5: 2.0}}
    assert tracker.num_flushes == 1


def test_names_are_those_that_records_and_dashboards_use() -> None:
    assert names.TRAIN_LOSS == "train/loss_nats"
    assert names.phase_seconds("train") == "time/train_s"
    assert names.baseline("copy_source", "bleu") == "baseline/copy_source/bleu"
