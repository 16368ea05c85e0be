import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rnnlm.training import shared_sum
from rnnlm.training.collective import TorchCollective
from rnnlm.training.shared_sum import SharedSum

WORKERS = 3
STEPS = 20


def gradients(rank: int, step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return [torch.randn(shape, generator=generator) for shape in ((50, 7), (), (1_001,))]


def worker(rank: int, folder: str, apart: bool) -> None:
    """One of three, who may find the first one on another host."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORKERS)
    if apart and rank == 2:
        shared_sum._host = lambda: "elsewhere"
    collective = TorchCollective()
    for step in range(STEPS):
        parameters = [torch.zeros_like(each) for each in gradients(rank, step)]
        for parameter, gradient in zip(parameters, gradients(rank, step), strict=True):
            parameter.grad = gradient
        collective.sum_gradients(parameters)
        for parameter, *terms in zip(parameters, *(gradients(each, step) for each in range(WORKERS)), strict=True):
            if apart:
                torch.testing.assert_close(parameter.grad, sum(terms))
            else:
                assert torch.equal(parameter.grad, terms[0] + terms[1] + terms[2])
    assert (collective._shared is None) is apart
    frozen = torch.zeros(5)
    frozen.grad = torch.full((5,), float(rank))
    collective.sum_gradients([frozen])  # another number of values
    assert frozen.grad.tolist() == [3.0] * 5
    Path(folder, f"done-{rank}").touch()
    dist.destroy_process_group()


@pytest.mark.parametrize("apart", [False, True])
def test_all_workers_get_the_same_sums(tmp_path: Path, apart: bool) -> None:
    mp.spawn(worker, (str(tmp_path), apart), nprocs=WORKERS)
    assert len(list(tmp_path.glob("done-*"))) == WORKERS


def test_memory_of_another_host_is_not_opened(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(64))
    assert shared_sum._open(f"{shared_sum._host()} {file}", 64) is not None
    assert shared_sum._open(f"elsewhere {file}", 64) is None
    assert shared_sum._open(f"{shared_sum._host()} {file}x", 64) is None
    assert shared_sum._open("", 64) is None


def test_without_memory_to_share_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        assert SharedSum.meet(8) is not None
        monkeypatch.delattr(os, "memfd_create")
        assert SharedSum.meet(8) is None
    finally:
        dist.destroy_process_group()
