from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rnnlm.data.ragged import Ragged
from rnnlm.models.config import LanguageModelConfig, Seq2SeqConfig
from rnnlm.optim.config import OptimConfig
from rnnlm.training.build import build_run, seeded_model
from rnnlm.training.config import ComputeConfig, TrainConfig
from rnnlm.training.state import TrainingRun

VOCAB_SIZE = 24
MakeRun = Callable[..., TrainingRun]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def random_rows(num_rows: int, seed: int, *, ends: bool = False) -> Ragged:
    """Numbers counted up from a random one, which is something to learn."""
    random = np.random.default_rng(seed)
    lengths = random.integers(3, 20, num_rows)
    rows = [2 + (random.integers(0, 22) + np.arange(length)) % (VOCAB_SIZE - 2) for length in lengths]
    return Ragged.from_rows([np.append(row, 1) if ends else row for row in rows])


def random_texts(num_rows: int, seed: int) -> dict[str, Ragged]:
    return {"text": random_rows(num_rows, seed, ends=True)}


def random_pairs(num_rows: int, seed: int) -> dict[str, Ragged]:
    return {"source": random_rows(num_rows, seed), "target": random_rows(num_rows, seed + 1)}


@pytest.fixture
def make_run() -> MakeRun:
    """Builds a tiny run; keywords change its settings."""

    def make(
        kind: str = "text",
        *,
        optim: dict[str, Any] | None = None,
        valid: int = 8,
        collective: Any = None,
        device: str = "cpu",
        **train: Any,
    ) -> TrainingRun:
        if kind == "text":
            model = seeded_model(LanguageModelConfig(embedding_size=8, hidden_size=8), VOCAB_SIZE, 5)
            data, held_out = random_texts(40, 1), random_texts(valid, 2)
        else:
            model = seeded_model(Seq2SeqConfig(embedding_size=8, hidden_size=8), VOCAB_SIZE, 5)
            data, held_out = random_pairs(40, 1), random_pairs(valid, 7)
        return build_run(
            model,
            train_tokens=data,
            valid_tokens=held_out if valid else None,
            train=TrainConfig(**{"lanes": 5, "bptt_length": 7, "batch_tokens": 120, "max_steps": 12, **train}),
            optim=OptimConfig(**{"lr": 0.01, **(optim or {})}),
            compute=ComputeConfig(threads=1, precision="auto" if device == "cpu" else "fp32"),
            seed=11,
            collective=collective,
            device=device,
        )

    return make
