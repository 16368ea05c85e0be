import math
from collections.abc import Callable

import pytest
import torch

from rnnlm.training.collective import Alone
from rnnlm.training.state import TrainingRun
from rnnlm.training.tasks import _row_ranges, valid_lanes

MakeRun = Callable[..., TrainingRun]


class Worker(Alone):
    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size


def run_step(run: TrainingRun, step: int) -> tuple[float, float, int]:
    losses, tokens = run.task.pieces(step)
    together = [(float(loss.objective.detach()), float(loss.nats)) for loss in losses]
    return sum(pair[0] for pair in together), sum(pair[1] for pair in together), tokens


@pytest.mark.parametrize("kind", ["text", "pairs"])
@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_shares_of_all_workers_add_up_to_the_whole(make_run: MakeRun, kind: str, world_size: int) -> None:
    whole = make_run(kind)
    shares = [make_run(kind, collective=Worker(rank, world_size)) for rank in range(world_size)]
    for step in range(4):
        objective, nats, tokens = run_step(whole, step)
        parts = [run_step(share, step) for share in shares]
        assert sum(part[0] for part in parts) == pytest.approx(objective, rel=1e-6)
        assert sum(part[1] for part in parts) == pytest.approx(nats, rel=1e-6)
        assert {part[2] for part in parts} == {tokens}
    scores = [share.task.validate() for share in shares]
    assert sum(score[1] for score in scores) == whole.task.validate()[1] == whole.task.num_valid_tokens
    assert sum(score[0] for score in scores) == pytest.approx(whole.task.validate()[0], rel=1e-5)


@pytest.mark.parametrize(("kind", "idle"), [("text", 1), ("pairs", 0)])
def test_a_worker_without_rows_has_zero_gradients(make_run: MakeRun, kind: str, idle: int) -> None:
    run = make_run(kind, lanes=1, batch_tokens=1, collective=Worker(idle, 2))
    losses, tokens = run.task.pieces(0)
    (loss,) = losses
    torch.autograd.backward(loss.objective)
    assert tokens > 0
    gradients = [weight.grad for weight in run.task.model.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    assert float(loss.nats) == 0.0


def test_smoothing_changes_the_objective_but_not_the_nats(make_run: MakeRun) -> None:
    plain, smooth = run_step(make_run(), 0), run_step(make_run(label_smoothing=0.3), 0)
    assert plain[0] == pytest.approx(plain[1])
    assert smooth[1] == plain[1]
    assert abs(smooth[0] - smooth[1]) > 1e-3


def test_the_state_is_carried_inside_an_epoch_and_starts_anew_after_it(make_run: MakeRun) -> None:
    run = make_run()
    steps = run.task.steps_per_epoch()
    assert run.task.carried(Alone()) == {}
    run_step(run, 0)
    carried = run.task.carried(Alone())
    assert {tensor.shape for tensor in carried.values()} == {(5, 8)}
    assert not any(tensor.requires_grad for tensor in carried.values())
    with_state = run_step(run, 1)
    assert run_step(make_run(), 1)[1] != with_state[1]
    run_step(run, 2)
    assert run_step(run, steps) == run_step(make_run(), steps)


def test_a_loaded_state_is_dropped_at_the_start_of_an_epoch(make_run: MakeRun) -> None:
    run, fresh = make_run(), make_run()
    run_step(run, 0)
    loaded = make_run()
    loaded.task.load_carried(run.task.carried(Alone()))
    steps = run.task.steps_per_epoch()
    assert run_step(loaded, steps) == run_step(fresh, steps)


def test_loaded_states_go_to_the_workers_that_have_their_lanes(make_run: MakeRun) -> None:
    whole = make_run()
    run_step(whole, 0)
    carried = whole.task.carried(Alone())
    expected = run_step(whole, 1)
    total = 0.0
    for rank in range(3):
        share = make_run(collective=Worker(rank, 3))
        share.task.load_carried(carried)
        total += run_step(share, 1)[1]
    assert total == pytest.approx(expected[1], rel=1e-6)


def test_pieces_keep_to_their_limit() -> None:
    assert _row_ranges(10, 7, None) == [slice(0, 10)]
    assert _row_ranges(10, 7, 28) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert _row_ranges(3, 7, 1) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert _row_ranges(0, 7, 28) == [slice(0, 0)]
    assert _row_ranges(0, 7, None) == [slice(0, 0)]


def test_without_a_valid_split_there_is_nothing_to_score(make_run: MakeRun) -> None:
    for kind in ("text", "pairs"):
        run = make_run(kind, valid=0)
        assert run.task.num_valid_tokens == 0
        assert run.task.validate() == (0.0, 0)


def test_quick_validation_has_long_lanes() -> None:
    assert valid_lanes(100, 70) == 1
    assert valid_lanes(16 * 70 * 5, 70) == 5
    assert valid_lanes(10**9, 70) == 64


def test_an_untrained_model_is_about_as_good_as_chance(make_run: MakeRun) -> None:
    for kind in ("text", "pairs"):
        nats, tokens = make_run(kind).task.validate()
        assert nats / tokens == pytest.approx(math.log(24), rel=0.15)
