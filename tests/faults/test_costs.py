"""What it costs that nothing gets lost: the time of a checkpoint, and how much slower training is beside it."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean, median

import numpy as np
import pytest
import torch

from rnnlm.data.ragged import Ragged
from rnnlm.integrations.checkpoint_store import CheckpointStore, checkpoint_name
from rnnlm.models.config import LanguageModelConfig
from rnnlm.optim.config import OptimConfig
from rnnlm.storage import Store
from rnnlm.training.build import build_run, seeded_model
from rnnlm.training.collective import Alone
from rnnlm.training.config import ComputeConfig, TrainConfig
from rnnlm.training.loop import training_steps
from rnnlm.training.state import StepReport, TrainingRun

VOCAB_SIZE = 10_000
WINDOW_S = 20.0
"""A checkpoint in each second window of this length: three times as often as by default."""
PAIRS = 5


@pytest.fixture
def run() -> TrainingRun:
    """The size of the PTB recipe: two tables of 10,000 words, an LSTM of 384, averaged weights."""
    torch.set_num_threads(2)
    config = LanguageModelConfig(
        embedding_size=256, hidden_size=384, num_layers=1, tie_embeddings=False, softmax_cutoffs=(1_000, 4_000)
    )
    words = np.random.default_rng(0).integers(3, VOCAB_SIZE, 400_000, dtype=np.int32)
    return build_run(
        seeded_model(config, VOCAB_SIZE, 0),
        train_tokens={"text": Ragged.from_rows([words])},
        valid_tokens=None,
        train=TrainConfig(lanes=40, bptt_length=35, max_steps=1_000_000),
        optim=OptimConfig(lr=1e-3, ema_decay=0.999),
        compute=ComputeConfig(threads=2),
        seed=0,
    )


def window(steps: Iterator[StepReport]) -> float:
    """Tokens a second over a window."""
    started, tokens = time.perf_counter(), 0
    while time.perf_counter() - started < WINDOW_S:
        tokens += next(steps).tokens
    return tokens / (time.perf_counter() - started)


@pytest.mark.timeout(900)
def test_checkpoints_cost_little(
    run: TrainingRun, tmp_path: Path, long_form: bool, report: Callable[..., None]
) -> None:
    if not long_form:
        pytest.skip("a figure of speed, for a quiet machine: make faults")
    store, steps = CheckpointStore(Store(str(tmp_path)), keep=2), training_steps(run)
    window(steps)
    held_s, written_s, alone, beside = [], [], [], []
    for _ in range(PAIRS):
        alone.append(window(steps))
        started = time.perf_counter()
        store.save(run, Alone())
        held_s.append(time.perf_counter() - started)
        # The call holds training up, so its time counts in the window that follows it.
        rate = window(steps)
        beside.append(rate * WINDOW_S / (WINDOW_S + held_s[-1]))
        store.wait(Alone())
        started = time.perf_counter()
        store.save(run, Alone())
        store.wait(Alone())
        written_s.append(time.perf_counter() - started)
    size = sum(path.stat().st_size for path in (tmp_path / checkpoint_name(run.state.step)).iterdir())
    slower = 1 - fmean(beside) / fmean(alone)
    report(
        "cost of checkpoints", mb=round(size / 1e6, 1), held_ms=round(1e3 * median(held_s), 1), every_s=WINDOW_S,
        written_ms=round(1e3 * median(written_s), 1), tokens_per_second=round(fmean(alone)),
        tokens_per_second_with=round(fmean(beside)), slower=round(slower, 4),
        pairs=[round(one / other, 4) for one, other in zip(beside, alone, strict=True)],
    )  # fmt: skip
    assert slower < 0.3
