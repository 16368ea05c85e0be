"""What it costs to decode in less than fp32, measured where a model is packaged: `auto` uses only what passes here.

The same validation rows are decoded in fp32 and below. A precision is allowed where it loses no more than

    0.3 BLEU (translations), 0.1 ROUGE-L (summaries), 0.1 % of perplexity (text).

The sample is drawn by the seed: at most 500 pairs; of text at most 64 windows of 256 tokens, 16,384 in all, each read from
the beginning of a stream.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from rnnlm.data.ragged import Joined
from rnnlm.decoding.build import FASTEST_FIRST
from rnnlm.decoding.config import PrecisionCheck
from rnnlm.decoding.decoder import Decoder
from rnnlm.decoding.generator import Generator
from rnnlm.decoding.prepared import is_preparable
from rnnlm.evaluation.config import EvaluateConfig
from rnnlm.evaluation.gate import LOWER_IS_BETTER
from rnnlm.evaluation.quality import measure
from rnnlm.evaluation.samples import Row
from rnnlm.nn.products import Precision, supports

MAX_PAIRS = 500
MAX_WINDOWS, WINDOW = 64, 256
MAX_LOSS = {"bleu": 0.3, "rougeL": 0.1}
"""Of 100."""
MAX_PERPLEXITY_RATIO = 1.001


def is_allowed(metric: str, value: float, fp32_value: float) -> bool:
    """Whether a figure is as good as that of fp32, but for what may be lost; NaN is not."""
    if metric in LOWER_IS_BETTER:
        return value <= fp32_value * MAX_PERPLEXITY_RATIO
    return value >= fp32_value - MAX_LOSS[metric]


def measurable(generator: Generator) -> list[Precision]:
    """Precisions below fp32 in which this machine can decode the model."""
    return [each for each in FASTEST_FIRST if supports(each)] if is_preparable(generator.model) else []


def check_pairs(
    generator: Generator, rows: Sequence[Row], settings: EvaluateConfig, *, seed: int
) -> list[PrecisionCheck]:
    """Compare the outputs of a translator or summarizer.

    Args:
        generator: decodes as it does by default.
        rows: validation pairs with their `id`, `source` and `target`.
        settings: how BLEU is computed.
        seed: of the sample.
    """
    metric = "bleu" if generator.task == "translate" else "rougeL"
    chosen = [rows[place] for place in _sample(len(rows), MAX_PAIRS, seed)]

    def figure(precision: Precision) -> float:
        sources, keys = [str(row["source"]) for row in chosen], [str(row["id"]) for row in chosen]
        outputs = generator.generate(sources, generator.settings(precision=precision), keys=keys)
        quality = measure(
            generator.task,
            [output.text for output in outputs],
            [str(row["target"]) for row in chosen],
            tokenize=settings.bleu_tokenize,
            lowercase=settings.bleu_lowercase,
        )
        return quality.figures()[metric]

    return _checks(measurable(generator), metric, len(chosen), figure)


def check_text(generator: Generator, tokens: NDArray[np.integer] | Joined, *, seed: int) -> list[PrecisionCheck]:
    """Compare how well a language model predicts, token by token as in decoding.

    Args:
        generator: the model.
        tokens: ids of the validation documents, one after the other.
        seed: of the sample.
    """
    length = min(WINDOW, len(tokens))
    if length == 0:
        return []
    places = _sample(len(tokens) // length, MAX_WINDOWS, seed)
    windows_NT = np.stack([tokens[place * length : (place + 1) * length] for place in places]).astype(np.int64)

    def figure(precision: Precision) -> float:
        nats = forced_nats(generator.decoder(generator.settings(precision=precision)), torch.from_numpy(windows_NT))
        return float(np.exp(nats / windows_NT.size))

    return _checks(measurable(generator), "perplexity", len(windows_NT), figure)


@torch.inference_mode()
def forced_nats(decoder: Decoder, tokens_NT: torch.Tensor) -> float:
    """Nats of streams that begin with these tokens, each fed after the true ones before it."""
    ids_N, state, memory = decoder.start([np.zeros(0, np.int64)] * len(tokens_NT))
    nats = 0.0
    for column_N in tokens_NT.unbind(1):
        next_token, state = decoder.step(ids_N, state, memory)
        nats -= float(next_token.log_probs().gather(1, column_N[:, None]).sum(dtype=torch.float64))
        ids_N = column_N
    return nats


def _sample(count: int, most: int, seed: int) -> list[int]:
    """Places of at most so many of `count` rows, in order."""
    chosen = np.random.default_rng(seed).choice(count, min(count, most), replace=False)
    return sorted(chosen.tolist())


def _checks(
    precisions: Sequence[Precision], metric: str, rows: int, figure: Callable[[Precision], float]
) -> list[PrecisionCheck]:
    if not precisions or not rows:
        return []
    fp32 = figure("fp32")
    found = []
    for precision in precisions:
        assert precision != "fp32"
        value = figure(precision)
        allowed = is_allowed(metric, value, fp32)
        found.append(
            PrecisionCheck(precision=precision, metric=metric, value=value, fp32_value=fp32, rows=rows, allowed=allowed)
        )
    return found
