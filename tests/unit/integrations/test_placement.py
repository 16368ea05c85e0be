import pytest

from rnnlm.errors import UsageError
from rnnlm.integrations.ray_cluster import Placement, Resources, connect, placement, trial_placement


@pytest.mark.parametrize(
    ("cpus", "expected"),
    [(1, Placement(1, 1)), (2, Placement(2, 1)), (4, Placement(4, 1)), (8, Placement(4, 2)), (16, Placement(4, 4))],
)
def test_by_default_cores_are_shared_out(cpus: int, expected: Placement) -> None:
    assert placement(Resources(cpus)) == expected


@pytest.mark.parametrize(
    ("resources", "positions", "expected"),
    [
        (Resources(2), 1_024, Placement(1, 2)),
        (Resources(2), 10_000, Placement(2, 1)),
        (Resources(8), 9_000, Placement(2, 4)),
        (Resources(8, nodes=(4, 4)), 1_024, Placement(2, 4)),
        (Resources(2, nodes=(1, 1)), 1_024, Placement(2, 1)),
        (Resources(10, nodes=(8, 2)), 1_024, Placement(2, 4)),
        (Resources(2, 2), 1_024, Placement(2, 1, 1.0)),
    ],
)
def test_a_small_step_is_not_cut_into_shares(resources: Resources, positions: int, expected: Placement) -> None:
    assert placement(resources, positions=positions) == expected


def test_what_is_given_stays() -> None:
    assert placement(Resources(8), workers=2) == Placement(2, 4)
    assert placement(Resources(8), workers=4, positions=100) == Placement(4, 2)
    assert placement(Resources(8), cpus_per_worker=8) == Placement(1, 8)
    assert placement(Resources(8), workers=3, cpus_per_worker=1) == Placement(3, 1)


def test_each_gpu_gets_a_worker() -> None:
    assert placement(Resources(16, 4)) == Placement(4, 4, 1.0)
    assert placement(Resources(16, 4), gpus_per_worker=0) == Placement(4, 4, 0.0)
    assert placement(Resources(16, 4), workers=1) == Placement(1, 16, 1.0)
    assert placement(Resources(16, 1), gpus_per_worker=0.5) == Placement(2, 8, 0.5)


def test_no_workers_means_this_process() -> None:
    assert placement(Resources(2), workers=0) == Placement(0, 2)


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "message"),
    [
        (3, 1, 0, "needs 3 cores, the cluster has 2"),
        (1, 4, 0, "needs 4 cores, the cluster has 2"),
        (1, 1, 1, "needs 1 GPUs, the cluster has 0"),
    ],
)
def test_what_the_cluster_cannot_give_is_refused(workers: int, cpus: int, gpus: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        placement(Resources(2), workers, cpus, gpus)


def test_a_worker_has_its_cores_on_one_node() -> None:
    with pytest.raises(UsageError, match="has no room on the nodes, which have 1, 1 cores"):
        placement(Resources(2, nodes=(1, 1)), workers=1, cpus_per_worker=2)
    assert placement(Resources(2, nodes=(1, 1)), workers=1) == Placement(1, 1)
    assert trial_placement(Resources(2, nodes=(1, 1)), 1) == (Placement(0, 1), 1)
    assert trial_placement(Resources(10, nodes=(8, 2)), 2) == (Placement(0, 4), 2)


def test_ray_is_asked_for_gpus_only_where_there_are_some() -> None:
    assert Placement(2, 3).resources_per_worker() == {"CPU": 3}
    assert Placement(2, 3, 0.5).resources_per_worker() == {"CPU": 3, "GPU": 0.5}


def test_trials_share_the_cluster_and_train_in_their_own_process() -> None:
    assert trial_placement(Resources(4), 2) == (Placement(0, 2), 2)
    assert trial_placement(Resources(2), 5) == (Placement(0, 1), 2)
    assert trial_placement(Resources(4), 3, cpus_per_worker=2) == (Placement(0, 2), 2)
    assert trial_placement(Resources(8, 1), 2) == (Placement(0, 4, 1.0), 1)


def test_trials_of_several_workers_get_worker_groups() -> None:
    assert trial_placement(Resources(8), 2, workers=2) == (Placement(2, 2), 2)
    assert trial_placement(Resources(8), 9, workers=2, cpus_per_worker=2) == (Placement(2, 2), 2)
    with pytest.raises(UsageError, match="needs 8 cores"):
        trial_placement(Resources(4), 1, workers=8, cpus_per_worker=1)


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "somewhere"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(UsageError, match="--address"):
        connect(address)
