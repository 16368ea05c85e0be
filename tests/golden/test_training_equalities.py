"""Trainings that have to come out equal: resumed or not, on one worker or two, in one piece or several.

Run as a script, this file is one of the two workers.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from rnnlm.data.ragged import Ragged
from rnnlm.models.config import LanguageModelConfig, Seq2SeqConfig
from rnnlm.optim.config import OptimConfig
from rnnlm.training.build import build_run, seeded_model
from rnnlm.training.checkpoint import load_checkpoint, read_state, save_checkpoint
from rnnlm.training.collective import Collective, TorchCollective
from rnnlm.training.config import ComputeConfig, TrainConfig
from rnnlm.training.loop import training_steps
from rnnlm.training.state import StepReport, TrainingRun

VOCAB_SIZE = 40
NUM_STEPS = 20
SAVED_AT = 7
KINDS = ["text", "pairs"]


def rows(num_rows: int, seed: int, *, ends: bool) -> Ragged:
    random = np.random.default_rng(seed)
    drawn = [random.integers(2, VOCAB_SIZE, random.integers(2, 25)) for _ in range(num_rows)]
    return Ragged.from_rows([np.append(row, 1) if ends else row for row in drawn])


def make_run(kind: str, collective: Collective | None = None, **train: Any) -> TrainingRun:
    """Tiny, with dropout everywhere, averaged weights, clipping, validation, and an odd number of lanes."""
    if kind == "text":
        config = LanguageModelConfig(embedding_size=12, hidden_size=16, embedding_dropout=0.1)
        data = {"text": rows(60, 1, ends=True)}
        held_out = {"text": rows(12, 2, ends=True)}
    else:
        config = Seq2SeqConfig(embedding_size=12, hidden_size=16)
        data = {"source": rows(60, 1, ends=False), "target": rows(60, 3, ends=False)}
        held_out = {"source": rows(12, 2, ends=False), "target": rows(12, 4, ends=False)}
    return build_run(
        seeded_model(config, VOCAB_SIZE, 17),
        train_tokens=data,
        valid_tokens=held_out,
        train=TrainConfig(
            **{
                "max_steps": NUM_STEPS,
                "lanes": 7,
                "bptt_length": 11,
                "batch_tokens": 240,
                "label_smoothing": 0.1,
                "validate_every": 8,
                **train,
            }
        ),
        optim=OptimConfig(lr=0.01, clip_grad_norm=0.5, ema_decay=0.9),
        compute=ComputeConfig(threads=1),
        seed=17,
        collective=collective,
    )


def train(run: TrainingRun, steps: int = NUM_STEPS, save_at: int = 0, folder: Path | None = None) -> list[StepReport]:
    reports = []
    for report in training_steps(run):
        reports.append(report)
        if report.step == save_at and folder is not None:
            save_checkpoint(folder, run)
        if report.step == steps:
            break
    return reports


def losses(reports: list[StepReport]) -> list[float]:
    return [report.loss_nats for report in reports if report.loss_nats is not None]


def gradients(run: TrainingRun) -> Tensor:
    return torch.cat([weight.grad.reshape(-1) for weight in run.task.model.parameters() if weight.grad is not None])


def everything(run: TrainingRun) -> dict[str, Tensor]:
    """Weights, averages, moments and carried states."""
    parameters = run.named_parameters()
    found = {f"model/{name}": tensor.detach() for name, tensor in parameters.items()}
    found |= {f"ema/{name}": tensor for name, tensor in run.average.tensors().items()} if run.average else {}
    found |= {f"carry/{name}": tensor for name, tensor in run.task.carried(run.collective).items()}
    for name, parameter in parameters.items():
        found |= {f"{key}/{name}": value for key, value in run.optimizer.state[parameter].items()}
    return found


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("saved_at", [SAVED_AT, 13])
def test_resumed_training_is_bitwise_the_uninterrupted_one(kind: str, saved_at: int, tmp_path: Path) -> None:
    whole = make_run(kind)
    reports = train(whole)
    train(make_run(kind), steps=saved_at, save_at=saved_at, folder=tmp_path)
    resumed = make_run(kind)
    assert load_checkpoint(tmp_path, resumed) == ()
    rest = train(resumed)

    assert losses(rest) == losses(reports[saved_at:])
    assert [report.validation for report in rest] == [report.validation for report in reports[saved_at:]]
    assert [report.learning_rate for report in rest] == [report.learning_rate for report in reports[saved_at:]]
    there, here = everything(whole), everything(resumed)
    assert there.keys() == here.keys()
    assert [name for name in there if not torch.equal(there[name], here[name])] == []
    columns = whole.history.columns()
    assert {**resumed.history.columns(), "seconds": columns["seconds"]} == columns


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("micro_batch_tokens", [1, 40])
def test_pieces_of_a_batch_give_the_gradient_of_the_whole(kind: str, micro_batch_tokens: int) -> None:
    whole, pieces = make_run(kind), make_run(kind, micro_batch_tokens=micro_batch_tokens)
    first, second = train(whole, steps=1), train(pieces, steps=1)
    assert len(list(make_run(kind, micro_batch_tokens=micro_batch_tokens).task.pieces(0).losses)) > 1
    assert losses(second) == pytest.approx(losses(first), rel=1e-6)
    assert relative_distance(gradients(pieces), gradients(whole)) < 1e-6
    assert losses(train(pieces)) == pytest.approx(losses(train(whole)), rel=1e-6)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes found; they also went on from checkpoints that one worker had saved."""
    folder = tmp_path_factory.mktemp("workers")
    torch.set_num_threads(1)
    for kind in KINDS:
        train(make_run(kind), steps=SAVED_AT, save_at=SAVED_AT, folder=folder / f"{kind}-by-one")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], env=environment) for rank in range(2)
    ]
    try:
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_workers_equal_one(kind: str, two_workers: Path) -> None:
    alone = make_run(kind)
    first = train(alone, steps=1)
    both = safetensors.torch.load_file(two_workers / f"{kind}-gradients.safetensors")["gradients"]
    assert relative_distance(both, gradients(alone)) < 1e-6
    reports = first + train(alone)
    found = json.loads((two_workers / f"{kind}.json").read_text())
    assert found["losses"] == pytest.approx(losses(reports), rel=1e-6)
    assert found["perplexities"] == pytest.approx([v["perplexity"] for v in perplexities(alone)], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_goes_on_with_another_number_of_workers(kind: str, two_workers: Path) -> None:
    uninterrupted = losses(train(make_run(kind)))[SAVED_AT:]
    found = json.loads((two_workers / f"{kind}.json").read_text())
    assert found["after_one"] == pytest.approx(uninterrupted, rel=1e-6)
    alone = make_run(kind)
    notes = load_checkpoint(two_workers / f"{kind}-by-two", alone)
    assert notes == ("workers was 2, now is 1",)
    assert losses(train(alone)) == pytest.approx(uninterrupted, rel=1e-6)


def test_the_carried_state_of_all_lanes_is_in_a_checkpoint_of_two_workers(two_workers: Path) -> None:
    by_one, by_two = (
        safetensors.torch.load_file(two_workers / f"text-by-{who}" / "carry.safetensors") for who in ("one", "two")
    )
    assert by_one.keys() == by_two.keys()
    for name, tensor in by_one.items():
        assert tensor.shape == (7, tensor.shape[1])
        assert torch.allclose(tensor, by_two[name], atol=1e-6)
    assert read_state(two_workers / "text-by-two")["environment"]["workers"] == 2


def test_a_stop_that_one_worker_is_asked_for_stops_both(two_workers: Path) -> None:
    found = [json.loads((two_workers / f"stop-{rank}.json").read_text()) for rank in range(2)]
    assert found == [[4, "requested"], [4, "requested"]]


def relative_distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def perplexities(run: TrainingRun) -> list[dict[str, float]]:
    return [{"perplexity": row[run.task.metric]} for row in run.history.validations]


def work(rank: int, folder: Path) -> None:
    """One of two workers."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    collective = TorchCollective()
    for kind in KINDS:
        run = make_run(kind, collective)
        reports = train(run, steps=1)
        if rank == 0:
            safetensors.torch.save_file({"gradients": gradients(run)}, folder / f"{kind}-gradients.safetensors")
        reports += train(run, save_at=SAVED_AT, folder=folder / f"{kind}-by-two")
        resumed = make_run(kind, collective)
        load_checkpoint(folder / f"{kind}-by-one", resumed)
        after_one = losses(train(resumed))
        found = {
            "losses": losses(reports),
            "perplexities": [v["perplexity"] for v in perplexities(run)],
            "after_one": after_one,
        }
        if rank == 0:
            (folder / f"{kind}.json").write_text(json.dumps(found))
    asked = make_run("text", collective)
    last = list(training_steps(asked, stop_requested=lambda: rank == 1 and asked.state.step >= 4))[-1]
    (folder / f"stop-{rank}.json").write_text(json.dumps([last.step, last.stop]))
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
