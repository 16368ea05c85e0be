"""One Ray and one MLflow for all integration tests: each takes seconds to start."""

import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnnlm.data.ragged import Ragged
from rnnlm.data.shards import write_tokens
from rnnlm.experiment import Experiment, build
from rnnlm.integrations import ray_cluster
from rnnlm.integrations.mlflow_tracking import Tracking
from rnnlm.integrations.ray_cluster import Session
from rnnlm.storage import Store

VOCAB_SIZE = 20


@dataclass(frozen=True)
class TinyCorpus:
    """Random tokens in a store, and experiments over them."""

    tokens: Store

    def experiment(self, name: str = "tiny", **changes: Any) -> Experiment:
        """A language model of a few hundred weights; 40 steps of some milliseconds."""
        train = {"lanes": 4, "bptt_length": 10, "max_steps": 40, "validate_every": 10}
        values = {
            "name": name,
            "task": "text",
            "data": {"train": "corpus.txt"},
            "model": {"kind": "language_model", "embedding_size": 8, "hidden_size": 8, "num_layers": 1},
            "train": train | changes.pop("train", {}),
        }
        return build(values | changes)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    store = Store(str(tmp_path_factory.mktemp("tokens")))
    generator = np.random.default_rng(0)
    for split, rows in (("train", 30), ("valid", 5)):
        documents = [generator.integers(3, VOCAB_SIZE, 50, dtype=np.int32) for _ in range(rows)]
        write_tokens(store, split, {"text": Ragged.from_rows(documents)})
    return TinyCorpus(store)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Session]:
    with ray_cluster.connect(num_cpus=2) as session:
        yield session


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Tracking:
    folder: Path = tmp_path_factory.mktemp("mlflow")
    shutil.copy(database, folder / "mlflow.db")
    return Tracking(f"sqlite:///{folder}/mlflow.db", str(folder / "artifacts"))


@pytest.fixture
def clean_environment() -> dict[str, str]:
    """The environment of a fresh shell: nothing of the Ray of these tests, and a mark that child processes inherit."""
    ours = ("RAY_", "RNNLM_", "MLFLOW_", "TUNE_", "GLOO_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"RNNLM_TEST": uuid.uuid4().hex, "OMP_NUM_THREADS": "1"}
