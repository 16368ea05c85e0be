"""Tokenization by Ray Data gives the bytes that tokenization in this process gives."""

from pathlib import Path

import pytest

from rnnlm.data import corpus as corpus_module
from rnnlm.data.config import DataConfig
from rnnlm.data.corpus import split_files
from rnnlm.data.ingest import ingest
from rnnlm.data.sources import check_sources
from rnnlm.data.tokenizing import tokenize_corpus
from rnnlm.errors import RnnlmError
from rnnlm.integrations.ray_cluster import Session
from rnnlm.integrations.ray_tokenize import tokenize_with_ray
from rnnlm.storage import Store
from rnnlm.text.config import TokenizerConfig

pytestmark = pytest.mark.integration


def test_equal_bytes_and_a_failing_task_is_told(
    ray_session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module, "ROW_GROUP_ROWS", 100)
    monkeypatch.setattr(corpus_module, "FILE_BYTES", 8_000)
    rows = "".join(f"quelle {n * 7919 % 1000} wort\ttarget {n} word{' more' * (n % 9)}\n" for n in range(1_500))
    (tmp_path / "a.tsv").write_text("source\ttarget\n" + rows)
    data = DataConfig.parse({"train": "a.tsv", "max_target_tokens": 7, "over_length": "drop"})
    corpus = Store(str(tmp_path / "corpus"))
    ingest(check_sources(data, is_text=False, base=tmp_path), data, seed=0, store=corpus)
    assert len(split_files(corpus, "train")) > 3
    options = {"data": data, "tokenizer": TokenizerConfig(vocab_size=300), "seed": 0, "ray_threshold_bytes": 1}
    stores = [Store(str(tmp_path / name)) for name in ("here", "ray")]
    tokenize_corpus(corpus, stores[0], **options)  # type: ignore[arg-type]
    manifest = tokenize_corpus(corpus, stores[1], distribute=tokenize_with_ray, **options)  # type: ignore[arg-type]
    assert manifest["splits"]["train"]["counts"]["dropped"] > 0
    contents = [{name: store.read_bytes(name) for name in store.files()} for store in stores]
    assert contents[0] == contents[1]

    path = Path(corpus.path(split_files(corpus, "train")[2].name))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    monkeypatch.setattr("rnnlm.data.tokenizing.train_tokenizer", lambda *_: _tokenizer(stores[0]))
    with pytest.raises(RnnlmError, match=r"Ray task failed.*damaged"):
        tokenize_corpus(corpus, stores[1], distribute=tokenize_with_ray, **options)  # type: ignore[arg-type]


def _tokenizer(store: Store) -> object:
    from rnnlm.text.tokenizer import Tokenizer

    return Tokenizer.from_file(store.path("tokenizer.json"))
