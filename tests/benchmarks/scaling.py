"""What docs/scaling.md predicts of two workers, beside two workers.

    make bench-scaling

Job b's shape, one thread a worker, on this machine; lanes shared out, and as many for each worker as one has. Measured
alone: a step with all lanes, a step with half of them, and the sum of a flat tensor over two workers at another size than the
model's. Predicted from these: a step of two workers.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from jobs import JOBS, TextJob
from kept import keep

from rnnlm.data.ragged import Ragged
from rnnlm.memory import ENVIRONMENT
from rnnlm.models.config import LanguageModelConfig
from rnnlm.optim.config import OptimConfig
from rnnlm.training.build import build_run, seeded_model
from rnnlm.training.collective import Alone, Collective, TorchCollective
from rnnlm.training.config import ComputeConfig, TrainConfig
from rnnlm.training.loop import training_steps

SPECIALS = 3
PROBE_FLOATS = 4_000_000
"""Of the tensor by which the link is measured."""
WARM = 3
JOB = JOBS["b"]
Precision = Literal["fp32", "bf16"]


def training(lanes: int, precision: Precision, collective: Collective) -> tuple[Callable[[], object], int]:
    """A step of training a call, and how many weights there are."""
    job = JOB
    assert isinstance(job, TextJob)
    tokens = np.random.default_rng(0).integers(SPECIALS, job.V, 40 * lanes * job.T, dtype=np.int32)
    config = LanguageModelConfig(
        embedding_size=job.E, hidden_size=job.H, num_layers=job.L, tie_embeddings=False,
        input_dropout=job.dropout, hidden_dropout=job.dropout, output_dropout=job.dropout,
    )  # fmt: skip
    model = seeded_model(config, job.V, 0)
    run = build_run(
        model,
        train_tokens={"text": Ragged.from_rows([tokens])},
        valid_tokens=None,
        train=TrainConfig(lanes=lanes, bptt_length=job.T, max_steps=1_000_000),
        optim=OptimConfig(algorithm="sgd", lr=0.1, weight_decay=0.0, clip_grad_norm=0.25),
        compute=ComputeConfig(precision=precision, threads=1),
        seed=0,
        collective=collective,
    )
    steps = training_steps(run)
    return lambda: next(steps), sum(weight.numel() for weight in model.parameters())


def seconds(work: Callable[[], object], turns: int) -> float:
    """Median wall-clock time of some calls."""
    found = []
    for turn in range(turns + WARM):
        started = time.perf_counter()
        work()
        if turn >= WARM:
            found.append(time.perf_counter() - started)
    return median(found)


def worker(rank: int, workers: int, meeting: str, lanes: int, precision: Precision, turns: int, result: str) -> None:
    """One of so many: the link first, where there is one, then the training."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers)
    collective = TorchCollective() if workers > 1 else Alone()
    probe = torch.zeros(PROBE_FLOATS)
    probe.grad = torch.zeros_like(probe)
    link_s = seconds(lambda: collective.sum_gradients([probe]), turns)
    step, num_weights = training(lanes, precision, collective)
    step_s = seconds(step, turns)
    if rank == 0:
        Path(result).write_text(f"{link_s} {step_s} {num_weights}")
    dist.destroy_process_group()


def measured(workers: int, lanes: int, precision: Precision, turns: int) -> tuple[float, float, int]:
    """Seconds of the probe's sum and of a step, and the number of weights."""
    with tempfile.TemporaryDirectory() as folder:
        result = f"{folder}/result"
        mp.spawn(worker, (workers, f"{folder}/meeting", lanes, precision, turns, result), nprocs=workers)
        link_s, step_s, num_weights = Path(result).read_text().split()
    return float(link_s), float(step_s), int(num_weights)


def figures(precision: Precision, turns: int) -> dict[str, float]:
    """What is kept of a precision."""
    assert isinstance(JOB, TextJob)
    _, whole_s, num_weights = measured(1, JOB.B, precision, turns)
    _, half_s, _ = measured(1, JOB.B // 2, precision, turns)
    link_s, both_s, _ = measured(2, JOB.B, precision, turns)
    _, twice_s, _ = measured(2, 2 * JOB.B, precision, turns)
    link = 4 * PROBE_FLOATS / link_s
    sum_s = 4 * num_weights / link
    return {
        "weights": num_weights,
        "tokens_per_step": JOB.B * JOB.T,
        "one_worker_s": round(whole_s, 4),
        "half_the_lanes_s": round(half_s, 4),
        "summed_bytes_per_s": round(link),
        "two_workers_predicted_s": round(half_s + sum_s, 4),
        "two_workers_s": round(both_s, 4),
        "two_workers_with_as_many_lanes_each_predicted_s": round(whole_s + sum_s, 4),
        "two_workers_with_as_many_lanes_each_s": round(twice_s, 4),
        "speedup": round(whole_s / both_s, 2),
        "speedup_with_as_many_lanes_each": round(2 * whole_s / twice_s, 2),
    }


def main() -> None:
    """Measure, predict, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15, help="steps of each measurement")
    given = parser.parse_args()
    os.environ.update(ENVIRONMENT)  # as Ray's workers have it
    kept = {precision: figures(precision, given.turns) for precision in ("fp32", "bf16")}
    for name in kept["fp32"]:
        print(f"{name:<50} {kept['fp32'][name]:>14,} {kept['bf16'][name]:>14,}")
    keep("scaling", kept)


if __name__ == "__main__":
    sys.exit(main())
