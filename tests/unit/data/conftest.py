"""Helpers for tests of ingest and tokenization."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rnnlm.data.config import DataConfig
from rnnlm.data.ingest import IngestReport, ingest
from rnnlm.data.sources import check_sources
from rnnlm.storage import Store


@pytest.fixture(scope="session")
def benchmark_data() -> Path:
    """The folder with the benchmark sets, which are no part of the repository."""
    given = os.environ.get("RNNLM_BENCHMARK_DATA")
    repository = Path(__file__).resolve().parents[3]
    folder = Path(given) if given else repository.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("benchmark data not found (RNNLM_BENCHMARK_DATA names its folder)")
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "corpus"))


@pytest.fixture
def run_ingest(tmp_path: Path, corpus: Store) -> Callable[..., IngestReport]:
    """Ingest files of the temporary folder into the corpus store."""

    def run(*, is_text: bool = True, seed: int = 0, base: Path = tmp_path, **settings: Any) -> IngestReport:
        data = DataConfig.parse({"valid_share": 0, "test_share": 0, "gate_share": 0, **settings})
        sources = check_sources(data, is_text=is_text, base=base)
        return ingest(sources, data, seed=seed, store=corpus)

    return run
