"""What generating with a language model costs: tokens a second, and the memory that is held between two tokens."""

import time
from collections.abc import Mapping
from statistics import median

import torch

from rnnlm.decoding.generator import Generator
from rnnlm.models.build import build_model
from rnnlm.models.config import ModelConfig, TransformerConfig
from rnnlm.models.language_model import LanguageModel

STREAM, BATCH = "generate/stream_tokens_per_second", "generate/batch_tokens_per_second"
LENGTHS = (1_000, 10_000, 100_000)
"""Tokens after which the held memory is told."""
BATCH_ROWS = 64
_TOKENS = {STREAM: 200, BATCH: 50}
"""Tokens of each row in a turn."""
_ROWS = {STREAM: 1, BATCH: BATCH_ROWS}
_TURNS = 5


def held_key(num_tokens: int) -> str:
    """The key of the memory that is held after so many tokens, in 10^6 bytes."""
    return f"memory/held_{num_tokens}_mb"


def full_cache_key(num_tokens: int) -> str:
    """The same of a Transformer that keeps keys and values of all of them."""
    return f"memory/full_cache_{num_tokens}_mb"


def generation_speeds(generators: Mapping[str, Generator]) -> dict[str, dict[str, float]]:
    """Tokens a second of each generator, sampled in one stream and in a batch.

    They take turns, so that what else the machine does hits all alike; a figure is the median of the turns after the first.
    """
    rates: dict[tuple[str, str], list[float]] = {}
    for _ in range(_TURNS):
        for name, generator in generators.items():
            for key in (STREAM, BATCH):
                rates.setdefault((name, key), []).append(_turn(generator, _ROWS[key], _TOKENS[key]))
    return {name: {key: median(rates[name, key][1:]) for key in (STREAM, BATCH)} for name in generators}


def _turn(generator: Generator, rows: int, num_tokens: int) -> float:
    settings = generator.settings(method="sample", max_length=num_tokens, min_length=num_tokens)
    started = time.perf_counter()
    made = generator.generate([""] * rows, settings)
    return sum(output.num_tokens for output in made) / (time.perf_counter() - started)


def held_memory(config: ModelConfig, vocab_size: int) -> dict[str, float]:
    """Weights and one stream's state after 1,000, 10,000 and 100,000 tokens, in 10^6 bytes.

    A recurrent state is as large after any number of tokens, and so is a Transformer's window; the cache of a Transformer
    that sees everything is not, and is told beside it.
    """
    held = {held_key(length): _held_bytes(config, vocab_size) / 1e6 for length in LENGTHS}
    if isinstance(config, TransformerConfig):
        for length in LENGTHS:
            longer = config.model_copy(update={"context_length": length})
            held[full_cache_key(length)] = _held_bytes(longer, vocab_size) / 1e6
    return held


def _held_bytes(config: ModelConfig, vocab_size: int) -> int:
    with torch.device("meta"):
        model = build_model(config, vocab_size)
        assert isinstance(model, LanguageModel)
        held = [*model.parameters(), *model.init_state(1).values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)
