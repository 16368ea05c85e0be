"""Evaluations from live objects and rows to a report: no files, no tracking, no cluster.

A row is a mapping as `ingest` writes it: `id`, `text` or `source` and `target`, `num_bytes`, `in_train`, `tags`.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnlm.data.ragged import Ragged
from rnnlm.decoding.config import DecodeConfig
from rnnlm.decoding.generator import Generator, Output
from rnnlm.errors import DataError
from rnnlm.evaluation.adaptive import score_dynamically, score_with_cache
from rnnlm.evaluation.baselines import Baseline, summary_baselines, text_baselines, translation_baselines
from rnnlm.evaluation.breakdown import by_length, by_tag
from rnnlm.evaluation.config import EvaluateConfig
from rnnlm.evaluation.gate import PRIMARY_METRICS
from rnnlm.evaluation.perplexity import Done, Perplexity, bytes_reason, perplexity, score_documents, score_targets
from rnnlm.evaluation.quality import Quality, measure
from rnnlm.evaluation.report import LengthBin, Report, Subset
from rnnlm.evaluation.samples import Row, continuation_settings, continuations, pair_samples
from rnnlm.models.language_model import LanguageModel
from rnnlm.models.seq2seq import Seq2Seq
from rnnlm.text.normalize import normalize

Progress = Callable[[str, int, int], None]
"""Called with the phase, what is done of it and its whole, in rows or tokens."""

_DECODE_ROWS = 512
"""Rows decoded between two reports of progress."""


def evaluate_text(
    generator: Generator,
    rows: Sequence[Row],
    tokens: Ragged | None = None,
    *,
    settings: EvaluateConfig,
    split: str | None = None,
    train_tokens: Ragged | None = None,
    train_rows: Iterable[Row] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Evaluate a language model on the documents of a split.

    Args:
        generator: model, tokenizer and normalization; it also continues the prompts of the sample table.
        rows: the documents with their `text`.
        tokens: the same documents as token ids; None: they are made from the rows.
        settings: what is measured.
        split: name of the split; None: the one in the settings.
        train_tokens: the train split, for the unigram baseline.
        train_rows: the train split, for the compressor after it.
        progress: told how far it is.

    Raises:
        DataError: there are no rows, or not as many as documents of tokens.
    """
    assert isinstance(generator.model, LanguageModel)
    chosen = _chosen(rows, settings)
    texts = [str(row["text"]) for row in chosen]
    if tokens is None:
        tokens = _encoded(generator, texts, documents=True)
    elif len(tokens) != len(rows):
        raise DataError(f"there are {len(rows)} documents, but tokens of {len(tokens)}")
    tokens = tokens.slice(0, len(chosen))
    clock = _Clock()
    with clock("perplexity"):
        done = _part(progress, "perplexity")
        nats = score_documents(generator.model, tokens, batch_tokens=settings.batch_tokens, done=done)
    reason = bytes_reason(generator.tokenizer, tokens, lossless_normalization=generator.normalize.lossless)
    predictions = _Predictions(nats, tokens.lengths, _bytes(chosen), reason)
    total = predictions.over(None)
    adaptive: dict[str, float | None] = {}
    if settings.cache is not None:
        with clock("cache"):
            cached = score_with_cache(generator.model, tokens, settings.cache)
        adaptive["perplexity_with_cache"] = perplexity(cached.sum(), total.num_tokens, 0).perplexity
    if settings.dynamic is not None:
        with clock("dynamic"):
            dynamic = score_dynamically(generator.model, tokens, settings.dynamic)
        adaptive["perplexity_dynamic"] = perplexity(dynamic.sum(), total.num_tokens, 0).perplexity
    with clock("baselines"):
        baselines = text_baselines(
            test_ids=tokens.values,
            train_ids=None if train_tokens is None else train_tokens.values,
            vocab_size=generator.tokenizer.vocab_size,
            num_bytes=None if reason else total.num_bytes,
            test_texts=texts,
            train_texts=None if train_rows is None else (str(row["text"]) for row in train_rows),
        )
    with clock("samples"):
        samples = continuations(generator, chosen, texts, settings.samples)
    return Report(
        task=generator.task,
        split=split or settings.split,
        num_rows=len(chosen),
        num_rows_in_split=len(rows),
        figures=predictions.figures(None) | adaptive,
        reasons={"bits_per_byte": reason} if reason else {},
        counts=_token_counts(total),
        not_in_train=_not_in_train(chosen, predictions.figures),
        baselines=baselines,
        tags=_tagged(chosen, predictions.figures),
        samples=samples,
        decoding=continuation_settings(generator).effective() if samples else {},
        seconds=clock.seconds,
    )


def evaluate_pairs(
    generator: Generator,
    rows: Sequence[Row],
    *,
    settings: EvaluateConfig,
    decode: DecodeConfig | None = None,
    split: str | None = None,
    train_rows: Iterable[Row] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Evaluate a translator or summarizer on the pairs of a split.

    Args:
        generator: model, tokenizer, normalization.
        rows: the pairs with their `source` and `target`.
        settings: what is measured, and how.
        decode: how outputs are made; None: as the generator does by itself.
        split: name of the split; None: the one in the settings.
        train_rows: the train split, for the dictionary baseline of a translation.
        progress: told how far it is.

    Raises:
        DataError: there are no rows.
    """
    chosen = _chosen(rows, settings)
    decode = decode or generator.decode
    sources, references = [str(row["source"]) for row in chosen], [str(row["target"]) for row in chosen]
    clock = _Clock()
    with clock("perplexity"):
        predictions = _predict_targets(generator, chosen, settings, _part(progress, "perplexity"))
    with clock("decode"):
        outputs = _decoded(generator, chosen, sources, decode, _part(progress, "decode"))

    def measured(texts: Sequence[str]) -> Quality:
        options: dict[str, Any] = {"tokenize": settings.bleu_tokenize, "lowercase": settings.bleu_lowercase}
        return measure(generator.task, texts, references, **options)

    with clock("score"):
        quality = measured([output.text for output in outputs])
        figures = quality.figures()
        beside = _not_in_train(chosen, lambda some: {**quality.figures(some), **predictions.figures(some)})
        tags, lengths = _tagged(chosen, quality.brief), _length_bins(generator.task, sources, quality)
    with clock("baselines"):
        baselines = _pair_baselines(generator.task, sources, references, measured, train_rows)
    return Report(
        task=generator.task,
        split=split or settings.split,
        num_rows=len(chosen),
        num_rows_in_split=len(rows),
        figures={**figures, **predictions.figures(None)},
        reasons={"bits_per_byte": predictions.reason} if predictions.reason else {},
        signatures=quality.signatures(),
        counts={**_token_counts(predictions.over(None)), **_output_counts(outputs)},
        not_in_train=beside,
        baselines=baselines,
        tags=tags,
        lengths=lengths,
        samples=pair_samples(chosen, outputs, quality, settings.samples),
        decoding=decode.effective(),
        seconds=clock.seconds,
    )


class _Predictions:
    """Nats, tokens and bytes of every row, and the figures of any of them."""

    def __init__(
        self, nats: NDArray[np.float64], tokens: NDArray[np.int64], num_bytes: NDArray[np.int64], reason: str | None
    ) -> None:
        self.nats, self.tokens, self.num_bytes, self.reason = nats, tokens, num_bytes, reason

    def over(self, rows: Sequence[int] | None) -> Perplexity:
        index = slice(None) if rows is None else rows
        sums = (self.nats[index].sum(), self.tokens[index].sum(), self.num_bytes[index].sum())
        return perplexity(float(sums[0]), int(sums[1]), int(sums[2]), self.reason)

    def figures(self, rows: Sequence[int] | None) -> dict[str, float | None]:
        found = self.over(rows)
        return {"perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte}


class _Clock:
    """Wall seconds of each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - begin


def _chosen(rows: Sequence[Row], settings: EvaluateConfig) -> Sequence[Row]:
    if not rows:
        raise DataError("the split has no rows to evaluate")
    return rows if settings.max_rows is None else rows[: settings.max_rows]


def _part(progress: Progress | None, phase: str) -> Done | None:
    if progress is None:
        return None
    return lambda done, total: progress(phase, done, total)


def _encoded(generator: Generator, texts: Sequence[str], *, documents: bool = False) -> Ragged:
    options = generator.normalize.model_dump()
    encode = generator.tokenizer.encode_documents if documents else generator.tokenizer.encode
    return Ragged.from_rows(encode([normalize(text, **options) for text in texts]))


def _bytes(rows: Sequence[Row]) -> NDArray[np.int64]:
    return np.array([int(row["num_bytes"]) for row in rows], dtype=np.int64)


def _predict_targets(
    generator: Generator, rows: Sequence[Row], settings: EvaluateConfig, done: Done | None
) -> _Predictions:
    assert isinstance(generator.model, Seq2Seq)
    source = _encoded(generator, [str(row["source"]) for row in rows])
    target = _encoded(generator, [str(row["target"]) for row in rows])
    nats = score_targets(generator.model, source, target, batch_tokens=settings.batch_tokens, done=done)
    reason = bytes_reason(generator.tokenizer, target, lossless_normalization=generator.normalize.lossless)
    return _Predictions(nats, target.lengths + 1, _bytes(rows), reason)


def _decoded(
    generator: Generator, rows: Sequence[Row], sources: Sequence[str], decode: DecodeConfig, done: Done | None
) -> list[Output]:
    outputs: list[Output] = []
    keys = [str(row["id"]) for row in rows]
    for start in range(0, len(rows), _DECODE_ROWS):
        part = slice(start, start + _DECODE_ROWS)
        outputs.extend(generator.generate(sources[part], decode, keys=keys[part]))
        if done is not None:
            done(len(outputs), len(rows))
    return outputs


def _pair_baselines(
    task: str,
    sources: Sequence[str],
    references: Sequence[str],
    measured: Callable[[Sequence[str]], Quality],
    train_rows: Iterable[Row] | None,
) -> list[Baseline]:
    def score(texts: Sequence[str]) -> dict[str, float]:
        return measured(texts).figures()

    if task == "summarize":
        return summary_baselines(sources, references, score)
    pairs = None if train_rows is None else ((str(row["source"]), str(row["target"])) for row in train_rows)
    return translation_baselines(sources, score, pairs)


def _not_in_train(rows: Sequence[Row], figures: Callable[[list[int]], dict[str, float | None]]) -> Subset | None:
    """The figures without the rows that also stand in train; None where there are no such rows, or no others."""
    unseen = [place for place, row in enumerate(rows) if not row.get("in_train")]
    if len(unseen) in (0, len(rows)):
        return None
    return Subset("not in train", len(unseen), figures(unseen))


def _tagged(rows: Sequence[Row], figures: Callable[[list[int]], Mapping[str, float | None]]) -> list[Subset]:
    groups = by_tag([str(row.get("tags") or "") for row in rows])
    return [Subset(tag, len(places), dict(figures(places))) for tag, places in groups.items()]


def _length_bins(task: str, sources: Sequence[str], quality: Quality) -> list[LengthBin]:
    metric = PRIMARY_METRICS[task][0]
    groups = by_length(sources)
    return [LengthBin(low, high, len(places), quality.brief(places)[metric]) for low, high, places in groups]


def _token_counts(total: Perplexity) -> dict[str, float]:
    return {"nats": total.nats, "tokens": total.num_tokens, "bytes": total.num_bytes}


def _output_counts(outputs: Sequence[Output]) -> dict[str, float]:
    return {
        "output_tokens_mean": sum(output.num_tokens for output in outputs) / len(outputs),
        "outputs_truncated": sum(output.truncated for output in outputs),
        "outputs_empty": sum(not output.text.strip() for output in outputs),
    }
