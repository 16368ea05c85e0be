import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rnnlm.errors import RnnlmError
from rnnlm.training import loop, names
from rnnlm.training.checkpoint import load_checkpoint, save_checkpoint
from rnnlm.training.collective import Alone
from rnnlm.training.loop import training_steps
from rnnlm.training.state import StepReport, TrainingRun, export_weights
from rnnlm.training.tracking import MemoryTracker

MakeRun = Callable[..., TrainingRun]


def tracked(reports: list[StepReport]) -> dict[str, dict[int, float]]:
    tracker = MemoryTracker()
    for report in reports:
        for point in report.points:
            tracker.log(point.metrics, point.step)
    return tracker.values


@pytest.mark.parametrize("kind", ["text", "pairs"])
def test_a_report_for_every_step_up_to_the_last(make_run: MakeRun, kind: str) -> None:
    run = make_run(kind)
    reports = list(training_steps(run))
    assert [report.step for report in reports] == list(range(1, 13))
    assert {report.planned_steps for report in reports} == {12}
    assert all(report.loss_nats is not None and 0 < report.loss_nats < 2 * math.log(24) for report in reports)
    assert all(report.tokens > 0 and report.seconds > 0 for report in reports)
    assert [report.stop for report in reports] == [None] * 11 + ["finished"]
    assert reports[-1].checkpoint
    assert reports[-1].validation is not None
    assert run.state.elapsed_s == reports[-1].elapsed_s >= sum(report.seconds for report in reports)
    assert list(training_steps(run)) == []


@pytest.mark.parametrize("kind", ["text", "pairs"])
def test_it_learns_what_is_the_same_every_time(make_run: MakeRun, kind: str) -> None:
    run = make_run(kind, max_steps=60, optim={"lr": 0.05})
    first = next(training_steps(run)).loss_nats
    last = list(training_steps(run))[-1].loss_nats
    assert first is not None
    assert last is not None
    assert last < 0.9 * first


def test_epochs_are_turned_into_steps(make_run: MakeRun) -> None:
    a_pass = make_run().task.steps_per_epoch()
    assert make_run(max_steps=None, epochs=2.0).state.planned_steps == 2 * a_pass
    assert make_run(max_steps=None, epochs=0.25).state.planned_steps == math.ceil(0.25 * a_pass)


def test_curves_have_every_multiple_of_the_stride(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    run.state.stride = 5
    values = tracked(list(training_steps(run)))
    assert list(values[names.TRAIN_LOSS]) == [5, 10]
    columns = run.history.columns(0, 5)
    mean = sum(a * b for a, b in zip(columns["loss_nats"], columns["tokens"], strict=True)) / sum(columns["tokens"])
    assert values[names.TRAIN_LOSS][5] == pytest.approx(mean)
    assert len(run.history) == 12


def test_validations_come_when_they_are_due_and_are_best_once(make_run: MakeRun) -> None:
    reports = list(training_steps(make_run(validate_every=5)))
    validated = [report for report in reports if report.validation]
    assert [report.step for report in validated] == [5, 10, 12]
    assert all(report.checkpoint for report in validated)
    scores = [report.validation[names.VALID_PERPLEXITY_LANED] for report in validated if report.validation]
    assert [report.is_best for report in validated] == [
        score < min(scores[:place], default=math.inf) for place, score in enumerate(scores)
    ]
    assert list(tracked(reports)[names.VALID_PERPLEXITY_LANED]) == [5, 10, 12]


def test_without_a_setting_it_validates_once_an_epoch_and_ten_times_at_least(make_run: MakeRun) -> None:
    few = list(training_steps(make_run(max_steps=30)))
    assert [report.step for report in few if report.validation] == list(range(3, 31, 3))
    many = make_run(max_steps=None, epochs=30.0)
    assert many.state.validate_every == many.task.steps_per_epoch()


def test_at_most_a_thousand_validations_are_logged(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MAX_POINTS", 4)
    run = make_run(validate_every=1)
    values = tracked(list(training_steps(run)))
    assert list(values[names.VALID_PERPLEXITY_LANED]) == [3, 6, 9, 12]
    assert [row["step"] for row in run.history.validations] == list(range(1, 13))


def test_pairs_log_their_padding_with_each_validation(make_run: MakeRun) -> None:
    run = make_run("pairs", validate_every=6)
    values = tracked(list(training_steps(run)))
    assert values[names.PADDING_SHARE] == {6: run.task.padding_share(), 12: run.task.padding_share()}
    assert set(values[names.VALID_PERPLEXITY]) == {6, 12}


def test_without_a_valid_split_nothing_is_validated(make_run: MakeRun) -> None:
    run = make_run(valid=0, patience=1)
    reports = list(training_steps(run))
    assert len(reports) == 12
    assert not any(report.validation or report.is_best for report in reports)
    assert run.state.best is None


def test_patience_stops_a_training_that_gets_no_better(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(max_steps=50, validate_every=2, patience=3)
    scores = iter([5.0, 4.0, 4.5, 4.2, 4.0, 1.0])
    monkeypatch.setattr(run.task, "validate", lambda: (next(scores), 1))
    reports = list(training_steps(run))
    assert (reports[-1].step, reports[-1].stop, reports[-1].is_best) == (10, "patience", False)
    assert (run.state.best, run.state.best_step) == (math.exp(4.0), 4)
    assert list(training_steps(run)) == []


def test_a_requested_stop_ends_after_the_step_without_a_validation_and_can_be_taken_up(make_run: MakeRun) -> None:
    run = make_run(validate_every=3)
    reports = list(training_steps(run, stop_requested=lambda: run.state.step >= 3))
    assert [report.step for report in reports] == [1, 2, 3]
    assert (reports[-1].stop, reports[-1].checkpoint, reports[-1].validation) == ("requested", True, None)
    assert [report.step for report in training_steps(run)] == list(range(3, 13))


def stopped(run: TrainingRun, step: int, folder: Path) -> list[StepReport]:
    """The reports up to a step at which it is asked to stop; then it is saved."""
    reports = list(training_steps(run, stop_requested=lambda: run.state.step >= step))
    save_checkpoint(folder, run)
    return reports


@pytest.mark.parametrize("kind", ["text", "pairs"])
@pytest.mark.parametrize("step", [5, 6])
def test_a_stop_does_not_move_validations(make_run: MakeRun, tmp_path: Path, kind: str, step: int) -> None:
    whole, run = (make_run(kind, validate_every=3, optim={"ema_decay": 0.9}) for _ in range(2))
    expected = list(training_steps(whole))
    before = stopped(run, step, tmp_path)
    resumed = make_run(kind, validate_every=3, optim={"ema_decay": 0.9})
    load_checkpoint(tmp_path, resumed)
    after = list(training_steps(resumed))

    if step == 6:
        made_up = after[0]
        assert (made_up.step, made_up.tokens, made_up.seconds) == (6, 0, 0.0)
        assert (made_up.checkpoint, made_up.stop) == (False, None)
        assert made_up.loss_nats == expected[5].loss_nats
    reports = [*before, *after]
    assert [report.step for report in reports if report.tokens] == list(range(1, 13))
    validated = [
        [(each.step, each.validation, each.is_best) for each in made if each.validation] for made in (expected, reports)
    ]
    assert validated[1] == validated[0]
    assert resumed.history.validations == whole.history.validations
    curves = [tracked(made) for made in (expected, reports)]
    assert curves[1].keys() == curves[0].keys()
    assert all(curves[1][name] == curves[0][name] for name in curves[0] if name != names.TOKENS_PER_SECOND)
    there, here = export_weights(whole), export_weights(resumed)
    assert all(torch.equal(there[name], here[name]) for name in there)


def scripted(run: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> TrainingRun:
    """With validations of 4, 5, 4.5 and 3 nats."""
    scores = [4.0, 5.0, 4.5, *[3.0] * 9]
    monkeypatch.setattr(run.task, "validate", lambda: (scores[run.state.num_validations], 1))
    return run


def test_a_stop_does_not_move_the_beginning_of_the_mean(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"validate_every": 2, "optim": {"asgd_patience": 1}}
    whole = scripted(make_run(**settings), monkeypatch)
    list(training_steps(whole))
    stopped(scripted(make_run(**settings), monkeypatch), 6, tmp_path)
    resumed = scripted(make_run(**settings), monkeypatch)
    load_checkpoint(tmp_path, resumed)
    list(training_steps(resumed))
    assert whole.average is not None
    assert resumed.average is not None
    assert resumed.average.num_updates == whole.average.num_updates == 1 + 6
    there, here = export_weights(whole), export_weights(resumed)
    assert all(torch.equal(there[name], here[name]) for name in there)


def test_patience_can_end_at_the_step_of_a_stop(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(scripted(make_run(validate_every=2, patience=2), monkeypatch), 6, tmp_path)
    run = scripted(make_run(validate_every=2, patience=2), monkeypatch)
    load_checkpoint(tmp_path, run)
    (report,) = training_steps(run)
    assert (report.step, report.stop, report.checkpoint, report.is_best) == (6, "patience", True, False)
    assert list(training_steps(run)) == []


def test_a_perplexity_beyond_a_float_is_its_end(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(max_steps=1)
    monkeypatch.setattr(run.task, "validate", lambda: (5_000.0, 1))
    (report,) = training_steps(run)
    assert report.validation == {names.VALID_PERPLEXITY_LANED: math.exp(700)}


def test_checkpoints_by_the_clock(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 1.0)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    reports = list(training_steps(make_run(valid=0, checkpoint_every_s=25)))
    due = [report.step for report in reports if report.checkpoint]
    assert 1 < len(due) < 12
    assert len(set(itertools.starmap(lambda a, b: b - a, itertools.pairwise(due[:-1])))) <= 1


def test_averaged_weights_are_what_is_validated(make_run: MakeRun) -> None:
    run = make_run(max_steps=3, validate_every=3, optim={"ema_decay": 0.99, "lr": 0.1})
    reports = list(training_steps(run))
    own = run.task.validate()
    assert run.average is not None
    with run.average.applied():
        averaged = run.task.validate()
    assert reports[-1].validation == {names.VALID_PERPLEXITY_LANED: math.exp(averaged[0] / averaged[1])}
    assert averaged != own


def test_divergence_is_an_error_that_says_what_to_do(make_run: MakeRun) -> None:
    run = make_run()
    steps = training_steps(run)
    next(steps)
    with torch.no_grad():
        next(run.task.model.parameters()).fill_(float("nan"))
    with pytest.raises(RnnlmError, match="diverged at step 2"):
        next(steps)


def test_clipping_limits_the_update_but_not_the_reported_norm(make_run: MakeRun) -> None:
    settings = {"algorithm": "sgd", "lr": 1.0, "warmup_share": 0.0, "schedule": "constant", "weight_decay": 0.0}
    updates = {}
    for limit in (None, 0.01):
        run = make_run(max_steps=1, optim={**settings, "clip_grad_norm": limit})
        before = [weight.detach().clone() for weight in run.task.model.parameters()]
        (report,) = training_steps(run)
        moved = [weight.detach() - old for weight, old in zip(run.task.model.parameters(), before, strict=True)]
        updates[limit] = (torch.nn.utils.get_total_norm(moved).item(), report.grad_norm)
    assert updates[0.01] == pytest.approx((0.01, updates[None][1]), rel=1e-3)
    assert updates[None][0] == pytest.approx(updates[None][1], rel=1e-3)
    assert updates[None][0] > 0.05


def test_a_wall_time_ends_training_in_time_with_its_schedule_done(make_run: MakeRun) -> None:
    seconds = 3.0
    run = make_run(max_steps=10**6, max_minutes=seconds / 60, optim={"lr": 1.0, "warmup_share": 0.1})
    reports = [report for report in training_steps(run) if report.stop or report.points]
    last = reports[-1]
    assert last.stop in ("finished", "time")
    assert 0.5 * seconds < last.elapsed_s < seconds + 1.5
    assert last.learning_rate < 0.2
    assert last.validation is not None
    assert run.state.stride is not None
    curve = tracked(reports)[names.TRAIN_LOSS]
    assert list(curve) == list(range(run.state.stride, run.state.step + 1, run.state.stride))
    assert len(curve) <= 1_000
    assert run.state.max_steps == 10**6


def test_more_time_than_needed_changes_nothing(make_run: MakeRun) -> None:
    reports = list(training_steps(make_run(max_minutes=60.0)))
    plain = list(training_steps(make_run()))
    assert [report.loss_nats for report in reports] == [report.loss_nats for report in plain]
    assert reports[-1].stop == "finished"


class OtherWorker(Alone):
    """Worker 1 of two, where worker 0 has said something at every step."""

    rank, world_size = 1, 2

    def __init__(self, said: list[float]) -> None:
        self.said = said

    def sum(self, values: Any) -> list[float]:
        if len(values) == 6:
            return [a + b for a, b in zip(values, [*self.said, 0.0], strict=True)]
        return list(values)


@pytest.mark.parametrize(
    ("said", "steps", "stop"),
    [
        ([0.0, 0.0, 0.0, 0.0, 0.0], 12, "finished"),
        ([1.0, 0.0, 0.0, 0.0, 0.0], 1, "requested"),
        ([0.0, 0.0, 1.0, 0.0, 0.0], 1, "time"),
        ([0.0, 0.0, 0.0, 4.0, 1.0], 4, "finished"),
        ([0.0, 0.0, 0.0, 99.0, 1.0], 12, "finished"),
    ],
)
def test_other_workers_follow_what_worker_0_reads_off_its_clock(
    make_run: MakeRun, said: list[float], steps: int, stop: str
) -> None:
    reports = list(training_steps(make_run(valid=0, collective=OtherWorker(said), max_minutes=0.0001)))
    assert (len(reports), reports[-1].stop) == (steps, stop)


def test_on_an_accelerator_losses_are_fetched_at_strides_checkpoints_and_when_many_wait(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(valid=0)
    run.state.stride = 5
    monkeypatch.setattr(loop, "MOST_PENDING", 3)
    # Computing stays on the CPU; only the loop believes in a device that is better not waited for.
    monkeypatch.setattr(run, "arithmetic", type("Elsewhere", (), {"device": torch.device("meta")}))
    reports = list(training_steps(run))
    assert [report.step for report in reports if report.loss_nats is not None] == [3, 5, 8, 10, 12]
    assert list(tracked(reports)[names.TRAIN_LOSS]) == [5, 10]
    plain = [report.loss_nats for report in training_steps(make_run(valid=0))]
    assert run.history.columns()["loss_nats"] == plain


def test_a_weight_that_no_loss_reaches_stays_as_it_is(make_run: MakeRun) -> None:
    run = make_run(max_steps=2, optim={"weight_decay": 0.0})
    run.task.model.unused = torch.nn.Parameter(torch.ones(3))
    run.optimizer.add_param_group({"params": [run.task.model.unused], "weight_decay": 0.0})
    assert len(list(training_steps(run))) == 2
    assert run.task.model.unused.tolist() == [1.0, 1.0, 1.0]


def test_a_training_that_gets_much_faster_than_it_was_has_few_enough_points(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MAX_POINTS", 5)
    run = make_run(max_steps=10**6, valid=0, collective=OtherWorker([0.0, 0.0, 0.0, 10**5, 1.0]), max_minutes=0.0001)
    run.state.stride = 4
    reports = list(training_steps(run))
    assert len(reports) == 4 * 5
    assert list(tracked(reports)[names.TRAIN_LOSS]) == [4, 8, 12, 16, 20]
