from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from rnnlm.training.collective import Alone, Collective, TorchCollective


@pytest.fixture(params=["alone", "gloo"])
def collective(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collective]:
    if request.param == "alone":
        yield Alone()
        return
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        yield TorchCollective()
    finally:
        dist.destroy_process_group()


def test_one_worker_keeps_what_it_has(collective: Collective) -> None:
    assert (collective.rank, collective.world_size) == (0, 1)
    assert collective.sum([1.5, 1 / 3]) == [1.5, 1 / 3]
    assert collective.any(True)
    assert not collective.any(False)
    collective.barrier()
    weight = torch.arange(3.0)
    collective.broadcast([weight])
    assert torch.equal(weight, torch.arange(3.0))


def test_gradients_of_all_shapes_come_back_in_their_places(collective: Collective) -> None:
    parameters = [torch.zeros(2, 3), torch.zeros(()), torch.zeros(4)]
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    collective.sum_gradients(parameters)
    for number, parameter in enumerate(parameters):
        assert torch.equal(parameter.grad, torch.full_like(parameter, number + 1.0))


def test_rows_are_put_in_the_places_of_their_numbers(collective: Collective) -> None:
    rows = torch.tensor([[30.0, 31.0], [10.0, 11.0]])
    gathered = collective.gather_rows({"hidden": rows}, torch.tensor([3, 1]), 4)
    assert gathered["hidden"].tolist() == [[0, 0], [10, 11], [0, 0], [30, 31]]
