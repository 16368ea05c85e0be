"""The corpus to token ids: a vocabulary learned on train, then every split encoded, file by file.

`tokenize_file` is a pure function of a file of the corpus, so it makes no difference where it runs: in this process for
small corpora, or wherever `distribute` runs it for large ones. The token files come out byte for byte the same.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from rnnlm.data.config import DataConfig
from rnnlm.data.corpus import OUTPUT_SPLITS, CorpusFile, read_file, read_manifest, read_split, split_files
from rnnlm.data.ingest import Progress
from rnnlm.data.ragged import Ragged
from rnnlm.data.shards import TokenWriter
from rnnlm.errors import DataError
from rnnlm.storage import Store
from rnnlm.text.config import NormalizeConfig, TokenizerConfig
from rnnlm.text.normalize import Normalizer
from rnnlm.text.sample import sample_texts
from rnnlm.text.tokenizer import Tokenizer

TOKENIZER_FILE = "tokenizer.json"
MANIFEST = "tokens.json"
RAY_THRESHOLD_BYTES = 50_000_000


@dataclass(frozen=True)
class TokenizeSettings:
    """What decides about the tokens of a row, besides the vocabulary.

    Attributes:
        is_text: documents, else pairs.
        max_source_tokens: longest source, `<eos>` not counted; documents have no limit.
        max_target_tokens: the same for targets.
        over_length: what happens to longer ones.
    """

    is_text: bool
    normalize: NormalizeConfig
    max_source_tokens: int
    max_target_tokens: int
    over_length: Literal["truncate", "drop", "error"]

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of texts in the corpus, and of ids in the token files."""
        return ("text",) if self.is_text else ("source", "target")


@dataclass
class TokenCounts:
    """What was counted while a split was encoded.

    Attributes:
        rows: rows of the corpus; those of the token files are fewer by `dropped`.
        num_bytes: sum of the corpus's `num_bytes` over the rows that were not dropped.
        dropped: pairs left out for their length.
        truncated_source, truncated_target: sides of pairs that were cut.
        unknown: `<unk>` tokens, by column.
        longest: tokens of the longest row before any cut, by column, without the `<eos>` of pairs.
        over_length_id: id of the first pair with a side that is too long.
    """

    rows: int = 0
    num_bytes: int = 0
    dropped: int = 0
    truncated_source: int = 0
    truncated_target: int = 0
    unknown: dict[str, int] = field(default_factory=dict)
    longest: dict[str, int] = field(default_factory=dict)
    over_length_id: str | None = None

    def add(self, other: "TokenCounts") -> None:
        """Add the counts of rows that follow."""
        for name in ("rows", "num_bytes", "dropped", "truncated_source", "truncated_target"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for column, count in other.unknown.items():
            self.unknown[column] = self.unknown.get(column, 0) + count
        for column, length in other.longest.items():
            self.longest[column] = max(self.longest.get(column, 0), length)
        self.over_length_id = self.over_length_id or other.over_length_id


@dataclass(frozen=True)
class TokenChunk:
    """The token ids of one file of the corpus."""

    columns: dict[str, Ragged]
    counts: TokenCounts


Distribute = Callable[[Store, str, Sequence[CorpusFile], Tokenizer, TokenizeSettings], Iterator[TokenChunk]]
"""Runs `tokenize_file` over the files of a split somewhere else, and gives the chunks in the order of the files."""


def tokenize_file(
    corpus: Store, split: str, file: CorpusFile, tokenizer: Tokenizer, settings: TokenizeSettings
) -> TokenChunk:
    """The token ids of one file of the corpus.

    Pairs of train that are too long are dropped or cut, as configured. Other splits lose no row: theirs are cut.
    """
    normalize = Normalizer(settings.normalize)
    keep_rows = split != "train" or settings.over_length != "drop"
    counts = TokenCounts()
    parts: dict[str, list[Ragged]] = {name: [] for name in settings.columns}
    for batch in read_file(corpus, file, ["id", *settings.columns, "num_bytes"]):
        encoded = _encode(batch, tokenizer, settings, normalize)
        limited = encoded if settings.is_text else _limit(encoded, batch, settings, keep_rows, counts)
        counts.rows += batch.num_rows
        for name, rows in limited.items():
            ragged = Ragged.from_rows(rows)
            parts[name].append(ragged)
            longest = max(map(len, encoded[name]), default=0)
            counts.longest[name] = max(counts.longest.get(name, 0), longest)
            unknown = 0 if tokenizer.unk_id is None else int(np.count_nonzero(ragged.values == tokenizer.unk_id))
            counts.unknown[name] = counts.unknown.get(name, 0) + unknown
        if settings.is_text:
            counts.num_bytes += sum(batch.column("num_bytes").to_pylist())
    return TokenChunk({name: Ragged.concatenate(column) for name, column in parts.items()}, counts)


def _encode(
    batch: pa.RecordBatch, tokenizer: Tokenizer, settings: TokenizeSettings, normalize: Normalizer
) -> dict[str, list[np.ndarray]]:
    encode = tokenizer.encode_documents if settings.is_text else tokenizer.encode
    return {name: encode([normalize(text) for text in batch.column(name).to_pylist()]) for name in settings.columns}


def _limit(
    encoded: dict[str, list[np.ndarray]],
    batch: pa.RecordBatch,
    settings: TokenizeSettings,
    keep_rows: bool,
    counts: TokenCounts,
) -> dict[str, list[np.ndarray]]:
    """Drop or cut pairs that are too long, and count them."""
    ids, sizes = batch.column("id").to_pylist(), batch.column("num_bytes").to_pylist()
    limited: dict[str, list[np.ndarray]] = {"source": [], "target": []}
    for row, (source, target) in enumerate(zip(encoded["source"], encoded["target"], strict=True)):
        long_source = len(source) > settings.max_source_tokens
        long_target = len(target) > settings.max_target_tokens
        if long_source or long_target:
            counts.over_length_id = counts.over_length_id or ids[row]
            if not keep_rows:
                counts.dropped += 1
                continue
            counts.truncated_source += long_source
            counts.truncated_target += long_target
        counts.num_bytes += sizes[row]
        limited["source"].append(source[: settings.max_source_tokens])
        limited["target"].append(target[: settings.max_target_tokens])
    return limited


def train_tokenizer(
    corpus: Store, config: TokenizerConfig, settings: TokenizeSettings, seed: int, progress: Progress | None = None
) -> Tokenizer:
    """Learn a vocabulary from a seeded sample of the train split, and of nothing else."""
    total = sum(file.text_bytes for file in split_files(corpus, "train"))
    texts = _train_texts(corpus, settings, total, progress)
    sample = sample_texts(texts, config.train_bytes, seed, total)
    return Tokenizer.train(sample, kind=config.kind, vocab_size=config.vocab_size, min_frequency=config.min_frequency)


def _train_texts(corpus: Store, settings: TokenizeSettings, total: int, progress: Progress | None) -> Iterator[str]:
    """Normalised texts of train, the target of a pair after its source."""
    normalize = Normalizer(settings.normalize)
    done = 0
    for batch in read_split(corpus, "train", settings.columns):
        columns = [column.to_pylist() for column in batch.columns]
        for texts in zip(*columns, strict=True):
            for text in texts:
                done += len(text)
                yield normalize(text)
        if progress is not None:
            progress.update(done, total, "learning the vocabulary")


def tokenize_corpus(
    corpus: Store,
    store: Store,
    *,
    data: DataConfig,
    tokenizer: TokenizerConfig,
    seed: int,
    given: Tokenizer | None = None,
    progress: Progress | None = None,
    distribute: Distribute | None = None,
    ray_threshold_bytes: int = RAY_THRESHOLD_BYTES,
) -> dict[str, Any]:
    """Learn the vocabulary and encode every split of a corpus; the manifest is written last.

    Args:
        corpus: what `ingest` wrote.
        store: receives `tokenizer.json`, `tokens/SPLIT/` and `tokens.json`.
        data: its length limits and normalization are used.
        tokenizer: the vocabulary's kind and size.
        seed: of the experiment; chooses the sample for the vocabulary.
        given: a vocabulary that is used instead of learning one.
        progress: told about bytes of text.
        distribute: encodes the splits of several files, in corpora of `ray_threshold_bytes` and more; without it they
            are encoded here too.
        ray_threshold_bytes: UTF-8 bytes of all texts.

    Returns:
        The manifest: `tokenizer` (digest, kind, vocab_size, unk_id, lossless) and `splits` (rows, tokens, counts).

    Raises:
        DataError: a pair is too long and `data.over_length` is `error`, or nothing of train is left.
    """
    manifest = read_manifest(corpus)
    settings = TokenizeSettings(
        manifest["is_text"], data.normalize, data.max_source_tokens, data.max_target_tokens, data.over_length
    )
    vocabulary = given or train_tokenizer(corpus, tokenizer, settings, seed, progress)
    store.write_bytes(TOKENIZER_FILE, vocabulary.to_json().encode())
    files = {split: split_files(corpus, split) for split in OUTPUT_SPLITS}
    total = sum(file.text_bytes for split in files.values() for file in split)
    elsewhere = distribute if total >= ray_threshold_bytes else None
    splits, done = {}, 0
    for split, part in files.items():
        if part:
            run = elsewhere if elsewhere is not None and len(part) > 1 else _here
            chunks = run(corpus, split, part, vocabulary, settings)
            splits[split] = _write_split(store, split, _watched(chunks, part, done, total, progress), settings)
            done += sum(file.text_bytes for file in part)
    result = {"tokenizer": _described(vocabulary, data.normalize), "is_text": settings.is_text, "splits": splits}
    store.write_json(MANIFEST, result)
    return result


def _here(
    corpus: Store, split: str, files: Sequence[CorpusFile], tokenizer: Tokenizer, settings: TokenizeSettings
) -> Iterator[TokenChunk]:
    return (tokenize_file(corpus, split, file, tokenizer, settings) for file in files)


def _watched(
    chunks: Iterator[TokenChunk], files: Sequence[CorpusFile], done: int, total: int, progress: Progress | None
) -> Iterator[TokenChunk]:
    for file, chunk in zip(files, chunks, strict=True):
        yield chunk
        done += file.text_bytes
        if progress is not None:
            progress.update(done, total, "encoding")


def _write_split(store: Store, split: str, chunks: Iterator[TokenChunk], settings: TokenizeSettings) -> dict[str, Any]:
    """Write the token files of a split; a short form of its manifest."""
    writer = TokenWriter(store, split, settings.columns)
    counts = TokenCounts()
    for chunk in chunks:
        counts.add(chunk.counts)
        if counts.over_length_id is not None and settings.over_length == "error":
            raise DataError(
                f"{split}: the pair {counts.over_length_id} has more than {settings.max_source_tokens} source or "
                f"{settings.max_target_tokens} target tokens, and data.over_length is 'error'; "
                "raise data.max_source_tokens or data.max_target_tokens, or choose 'truncate' or 'drop'"
            )
        writer.append(chunk.columns)
    manifest = writer.close(asdict(counts))
    if not manifest["rows"]:
        raise DataError(f"{split}: nothing is left; all {counts.rows:,} pairs are too long (data.max_source_tokens)")
    return {name: manifest[name] for name in ("rows", "tokens", "counts")}


def _described(tokenizer: Tokenizer, normalize: NormalizeConfig) -> dict[str, Any]:
    return {
        "digest": tokenizer.digest,
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "unk_id": tokenizer.unk_id,
        "keeps_blanks": tokenizer.keeps_blanks,
        "lossless_normalization": normalize.lossless,
    }
