"""What decoding needs from a model, and what it hands back: token level, no text.

Shapes: B rows of the input, N hypotheses (B rows, or B x K beams), S source length, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from rnnlm.models.language_model import LanguageModel
from rnnlm.models.seq2seq import Seq2Seq


class Start(NamedTuple):
    """Where generation begins."""

    ids_B: Tensor
    """The token that is fed first."""
    state: Any
    """What changes from step to step, one row a hypothesis; has `select(rows)`."""
    memory: Any
    """What stays (the encoded source), one row an input; has `select(rows)`, or is None."""


class Decoder(Protocol):
    """A model that yields the distribution of the next token. Small enough for tests to write their own."""

    pad_id: int
    eos_id: int
    vocab_size: int

    def start(self, rows: Sequence[np.ndarray]) -> Start:
        """Read the sources, or the prompts, of a batch."""

    def step(self, ids_N: Tensor, state: Any, memory: Any) -> tuple[Tensor, Any]:
        """Feed one token a hypothesis.

        `N` is a multiple of the memory's rows: hypothesis n belongs to row n // (N / B).

        Returns:
            Log-probabilities [N, V], which the caller may change, and the state after the token.
        """


@dataclass(frozen=True)
class Decoded:
    """One sequence for each row of a batch."""

    tokens: list[np.ndarray]
    """Without `<eos>`."""
    log_probs: list[float]
    """Natural logarithm of the sequence's probability under the model, `<eos>` counted where it came."""
    ended: list[bool]
    """False: cut at the greatest length."""

    def mean_log_prob(self, row: int) -> float:
        """Nats per token made, `<eos>` counted."""
        return self.log_probs[row] / (len(self.tokens[row]) + self.ended[row])
