from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnnlm.data import corpus as corpus_module
from rnnlm.data.config import DataConfig
from rnnlm.data.corpus import CorpusFile
from rnnlm.data.ingest import IngestReport
from rnnlm.data.shards import read_tokens
from rnnlm.data.tokenizing import TokenChunk, TokenizeSettings, tokenize_corpus, tokenize_file
from rnnlm.errors import DataError
from rnnlm.storage import Store
from rnnlm.text.config import TokenizerConfig
from rnnlm.text.tokenizer import EOS_ID, UNK_ID, Tokenizer

Run = Callable[..., IngestReport]


@pytest.fixture
def tokens(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "tokens-store"))


def tokenize(corpus: Store, tokens: Store, kind: str = "word", **settings: Any) -> dict[str, Any]:
    data = DataConfig.parse({"train": "x", **settings})
    return tokenize_corpus(corpus, tokens, data=data, tokenizer=TokenizerConfig.parse({"kind": kind}), seed=0)


def test_documents(tmp_path: Path, run_ingest: Run, corpus: Store, tokens: Store) -> None:
    (tmp_path / "a.txt").write_text("a b\nB\n\nc a\n")
    (tmp_path / "v.txt").write_text("a d\n\n")
    run_ingest(train="a.txt", valid="v.txt", unit="block", normalize={"lowercase": True})
    manifest = tokenize(corpus, tokens, normalize={"lowercase": True})
    tokenizer = Tokenizer.from_file(tokens.path("tokenizer.json"))
    a, b, c = (int(ids[0]) for ids in tokenizer.encode(["a", "b", "c"]))
    train = read_tokens(tokens, "train")["text"]
    assert [row.tolist() for row in train] == [[a, b, EOS_ID, b, EOS_ID], [c, a, EOS_ID]]
    assert [row.tolist() for row in read_tokens(tokens, "valid")["text"]] == [[a, UNK_ID, EOS_ID]]
    assert manifest == tokens.read_json("tokens.json")
    assert manifest["tokenizer"] == {
        "digest": tokenizer.digest,
        "kind": "word",
        "vocab_size": 6,
        "unk_id": UNK_ID,
        "keeps_blanks": False,
        "lossless_normalization": False,
    }
    valid = manifest["splits"]["valid"]
    assert (valid["rows"], valid["tokens"], valid["counts"]["unknown"]) == (1, {"text": 3}, {"text": 1})
    assert (valid["counts"]["num_bytes"], valid["counts"]["longest"]) == (4, {"text": 3})
    assert "test" not in manifest["splits"]


def ingest_long_pairs(tmp_path: Path, run_ingest: Run) -> None:
    rows = "source\ttarget\na b c d\tx\na b\tx y z\na\tx y\n"
    (tmp_path / "a.tsv").write_text(rows)
    (tmp_path / "t.tsv").write_text(rows)
    run_ingest(is_text=False, train="a.tsv", test="t.tsv")


LIMITS = {"max_source_tokens": 3, "max_target_tokens": 2}


def test_long_pairs_are_truncated(tmp_path: Path, run_ingest: Run, corpus: Store, tokens: Store) -> None:
    ingest_long_pairs(tmp_path, run_ingest)
    manifest = tokenize(corpus, tokens, **LIMITS)
    columns = read_tokens(tokens, "train")
    assert columns["source"].lengths.tolist() == [3, 2, 1]
    assert columns["target"].lengths.tolist() == [1, 2, 2]
    counts = manifest["splits"]["train"]["counts"]
    assert (counts["truncated_source"], counts["truncated_target"], counts["dropped"]) == (1, 1, 0)
    assert counts["longest"] == {"source": 4, "target": 3}
    assert counts["num_bytes"] == len("x\nx y z\nx y\n")


def test_long_pairs_are_dropped_from_train_and_truncated_elsewhere(
    tmp_path: Path, run_ingest: Run, corpus: Store, tokens: Store
) -> None:
    ingest_long_pairs(tmp_path, run_ingest)
    splits = tokenize(corpus, tokens, over_length="drop", **LIMITS)["splits"]
    train, test = splits["train"]["counts"], splits["test"]["counts"]
    assert (splits["train"]["rows"], train["rows"], train["dropped"], train["num_bytes"]) == (1, 3, 2, 4)
    assert (splits["test"]["rows"], test["dropped"], test["truncated_source"]) == (3, 0, 1)
    with pytest.raises(DataError, match="all 3 pairs are too long"):
        tokenize(corpus, tokens, over_length="drop", max_target_tokens=1, max_source_tokens=1)


def test_a_long_pair_is_an_error_if_asked(tmp_path: Path, run_ingest: Run, corpus: Store, tokens: Store) -> None:
    ingest_long_pairs(tmp_path, run_ingest)
    with pytest.raises(DataError, match=r"train: the pair a\.tsv:2 has more than 3 source or 2 target tokens"):
        tokenize(corpus, tokens, over_length="error", **LIMITS)
    assert not tokens.exists("tokens.json")
    tokenize(corpus, tokens, over_length="error")


def test_the_vocabulary_is_learned_on_train_alone(tmp_path: Path, run_ingest: Run, corpus: Store) -> None:
    (tmp_path / "a.tsv").write_text("source\ttarget\na\tx\n")
    digests = []
    for valid in ("a\tx\n", "quite\tdifferent\n"):
        (tmp_path / "v.tsv").write_text("source\ttarget\n" + valid)
        run_ingest(is_text=False, train="a.tsv", valid="v.tsv")
        manifest = tokenize(corpus, Store(str(tmp_path / valid[0])), kind="char")
        digests.append(manifest["tokenizer"]["digest"])
    assert digests[0] == digests[1]
    assert manifest["tokenizer"]["vocab_size"] == 5


def test_files_of_a_corpus_change_nothing_and_another_place_gives_the_same_bytes(
    tmp_path: Path, run_ingest: Run, corpus: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"line {number * 7919 % 1000} of {number}\n\n" for number in range(600))
    (tmp_path / "a.txt").write_text(text)
    monkeypatch.setattr(corpus_module, "ROW_GROUP_ROWS", 50)
    stores = []
    for bound in (1 << 30, 1_500):
        monkeypatch.setattr(corpus_module, "FILE_BYTES", bound)
        run_ingest(train="a.txt", valid_share=0.1)
        stores.append(Store(str(tmp_path / f"t{bound}")))
        tokenize(corpus, stores[-1], kind="bpe")
    calls = []

    def elsewhere(
        where: Store, split: str, files: Sequence[CorpusFile], tokenizer: Tokenizer, settings: TokenizeSettings
    ) -> Iterator[TokenChunk]:
        calls.append((split, len(files)))
        return iter([tokenize_file(where, split, file, tokenizer, settings) for file in files])

    stores.append(Store(str(tmp_path / "elsewhere")))
    options = {"data": DataConfig.parse({"train": "x"}), "tokenizer": TokenizerConfig(), "seed": 0}
    tokenize_corpus(corpus, stores[-1], distribute=elsewhere, ray_threshold_bytes=1, **options)  # type: ignore[arg-type]
    contents = [{name: store.read_bytes(name) for name in store.files()} for store in stores]
    assert contents[0] == contents[1] == contents[2]
    assert calls[0][0] == "train"
    assert calls[0][1] > 3
    calls.clear()
    tokenize_corpus(corpus, stores[-1], distribute=elsewhere, ray_threshold_bytes=1 << 40, **options)  # type: ignore[arg-type]
    assert calls == []


def test_progress_reaches_the_size_of_the_corpus(tmp_path: Path, run_ingest: Run, corpus: Store, tokens: Store) -> None:
    class Log(list[tuple[float, float | None, str]]):
        def update(self, done: float, total: float | None = None, note: str = "") -> None:
            self.append((done, total, note))

    (tmp_path / "a.txt").write_text("a b\n\nc\n")
    (tmp_path / "v.txt").write_text("d\n")
    run_ingest(train="a.txt", valid="v.txt")
    log = Log()
    data = DataConfig.parse({"train": "x"})
    tokenize_corpus(corpus, tokens, data=data, tokenizer=TokenizerConfig(kind="char"), seed=0, progress=log)
    assert log == [(4, 4, "learning the vocabulary"), (4, 5, "encoding"), (5, 5, "encoding")]


def test_penn_treebank(benchmark_data: Path, run_ingest: Run, corpus: Store, tokens: Store) -> None:
    files = {split: f"ptb/ptb.{split}.txt" for split in ("train", "valid", "test")}
    run_ingest(base=benchmark_data, unit="file", **files)
    data = DataConfig.parse({"train": "x"})
    config = TokenizerConfig(kind="word", vocab_size=20_000)
    manifest = tokenize_corpus(corpus, tokens, data=data, tokenizer=config, seed=0)
    counts = {split: part["tokens"]["text"] for split, part in manifest["splits"].items()}
    assert counts == {"train": 929_589, "valid": 73_760, "test": 82_430}
    assert manifest["tokenizer"]["vocab_size"] == 10_001


def test_tinyshakespeare(benchmark_data: Path, run_ingest: Run, corpus: Store, tokens: Store) -> None:
    run_ingest(base=benchmark_data, unit="file", train="tinyshakespeare/train.txt", valid="tinyshakespeare/valid.txt")
    manifest = tokenize(corpus, tokens, kind="char")
    ends = {
        split: np.count_nonzero(read_tokens(tokens, split)["text"].values == EOS_ID) for split in ("train", "valid")
    }
    assert ends == {"train": 1, "valid": 1}
    assert {split: part["tokens"]["text"] for split, part in manifest["splits"].items()} == {
        "train": 1_003_854 + 1,
        "valid": 111_540 + 1,
    }
    assert manifest["tokenizer"]["vocab_size"] == 65 + 3
