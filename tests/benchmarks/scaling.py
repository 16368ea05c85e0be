"""What docs/scaling.md predicts of two workers, beside two workers.

    make bench-scaling

Job b's shape, fp32, one thread a worker, gloo on this machine. Measured alone: a step with all lanes, a step with half of them, and
the sum of a flat tensor over two workers at another size than the model's. Predicted from these: a step of two workers.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from jobs import JOBS, TextJob
from kept import keep

from rnnlm.data.ragged import Ragged
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


def training(job: TextJob, lanes: int, collective: Collective) -> tuple[Callable[[], object], int]:
    """A step of training a call, and how many weights there are."""
    tokens = np.random.default_rng(0).integers(SPECIALS, job.V, 40 * job.B * job.T, dtype=np.int32)
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
        optim=OptimConfig(algorithm="sgd", lr=0.1, clip_grad_norm=0.25),
        compute=ComputeConfig(precision="fp32", threads=1),
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


def worker(rank: int, meeting: str, job: TextJob, turns: int, result: str) -> None:
    """One of two: the link first, then the training."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    probe = torch.ones(PROBE_FLOATS)
    link_s = seconds(lambda: dist.all_reduce(probe), turns)
    step, _ = training(job, job.B, TorchCollective())
    step_s = seconds(step, turns)
    if rank == 0:
        Path(result).write_text(f"{link_s} {step_s}")
    dist.destroy_process_group()


def main() -> None:
    """Measure, predict, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15, help="steps of each measurement")
    given = parser.parse_args()
    job = JOBS["b"]
    assert isinstance(job, TextJob)
    torch.set_num_threads(1)
    whole, num_weights = training(job, job.B, Alone())
    half, _ = training(job, job.B // 2, Alone())
    whole_s, half_s = seconds(whole, given.turns), seconds(half, given.turns)
    with tempfile.TemporaryDirectory() as folder:
        result = f"{folder}/result"
        mp.spawn(worker, (f"{folder}/meeting", job, given.turns, result), nprocs=2)
        link_s, both_s = map(float, Path(result).read_text().split())
    link = 4 * PROBE_FLOATS / link_s
    predicted_s = half_s + 4 * num_weights / link
    figures = {
        "weights": num_weights,
        "tokens_per_step": job.B * job.T,
        "one_worker_s": round(whole_s, 4),
        "half_the_lanes_s": round(half_s, 4),
        "summed_bytes_per_s": round(link),
        "two_workers_predicted_s": round(predicted_s, 4),
        "two_workers_s": round(both_s, 4),
        "speedup_predicted": round(whole_s / predicted_s, 2),
        "speedup": round(whole_s / both_s, 2),
    }
    for name, value in figures.items():
        print(f"{name:<26} {value:>14,}")
    keep("scaling", figures)


if __name__ == "__main__":
    sys.exit(main())
