"""What decoding needs from a model, and what it hands back: token level, no text.

Shapes: B rows of the input, N hypotheses (B rows, or B x K beams), S source length, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from rnnlm.decoding.next_token import LogProbs, NextToken
from rnnlm.models.language_model import LanguageModel
from rnnlm.models.seq2seq import Seq2Seq
from rnnlm.nn.shapes import few
from rnnlm.nn.state import State


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

    def step(self, ids_N: Tensor, state: Any, memory: Any) -> tuple[NextToken, Any]:
        """Feed one token a hypothesis.

        `N` is a multiple of the memory's rows: hypothesis n belongs to row n // (N / B).

        Returns:
            The distribution of the token after it, and the state after the token.
        """


def banned(decoder: Decoder, num_done: int, min_length: int) -> list[int]:
    """Tokens that cannot come after `num_done` others: padding, and the end before `min_length` tokens."""
    return [decoder.pad_id, decoder.eos_id] if num_done < min_length else [decoder.pad_id]


def staying(on_A: Tensor, count: int) -> Tensor | None:
    """Places of the rows that stay in a batch in which not all go on; None: all stay.

    With those that go on stay some that are finished, so that batches come in few sizes, at most an eighth larger than
    needed: what a library prepares for the shape of a product costs about as much as the product.

    Args:
        on_A: which rows go on.
        count: how many, at least one.
    """
    size = few(count, least_step=1)
    if size >= len(on_A):
        return None
    return torch.argsort(~on_A, stable=True)[:size]


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


class LanguageModelDecoder:
    """Continues prompts. The stream starts with `<eos>`, as every document does in training."""

    _PREFILL = 256
    """Prompt tokens read in one call, which bounds the memory of a long prompt."""

    def __init__(self, model: LanguageModel, *, pad_id: int, eos_id: int, vocab_size: int) -> None:
        self.model, self.pad_id, self.eos_id, self.vocab_size = model, pad_id, eos_id, vocab_size

    def start(self, rows: Sequence[np.ndarray]) -> Start:
        """Read prompts of any lengths; those of one length together, so that no row's state sees padding."""
        places: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(len(row), []).append(place)
        groups = [self._read([rows[place] for place in group]) for group in places.values()]
        order = np.argsort(np.concatenate(list(places.values())))
        order_B = torch.from_numpy(order).to(groups[0][0].device)
        ids_B = torch.cat([ids for ids, _ in groups])[order_B]
        return Start(ids_B, State.concatenate([state for _, state in groups]).select(order_B), None)

    def _read(self, rows: Sequence[np.ndarray]) -> tuple[Tensor, State]:
        device = next(self.model.parameters()).device
        streams = np.stack([np.concatenate([[self.eos_id], row]) for row in rows])
        tokens_BT = torch.from_numpy(streams.astype(np.int64)).to(device)
        state = self.model.init_state(len(rows))
        prompts_BT = tokens_BT[:, :-1]
        for begin in range(0, prompts_BT.shape[1], self._PREFILL):
            _, state = self.model(prompts_BT[:, begin : begin + self._PREFILL], state)
        return tokens_BT[:, -1], state

    def step(self, ids_N: Tensor, state: Any, memory: Any) -> tuple[NextToken, Any]:  # noqa: ARG002
        """One token further."""
        logits_NV, state = self.model.step(ids_N, state)
        return LogProbs(torch.log_softmax(logits_NV.float(), dim=-1)), state


class Seq2SeqDecoder:
    """Answers sources, each of which is encoded once; beams of one source share its memory."""

    def __init__(self, model: Seq2Seq, *, pad_id: int, eos_id: int, vocab_size: int) -> None:
        self.model, self.pad_id, self.eos_id, self.vocab_size = model, pad_id, eos_id, vocab_size

    def start(self, rows: Sequence[np.ndarray]) -> Start:
        """Encode sources of any lengths, each ended by `<eos>`."""
        device = next(self.model.parameters()).device
        lengths_B = np.array([len(row) + 1 for row in rows], np.int64)
        source_BS = np.full((len(rows), lengths_B.max()), self.pad_id, np.int64)
        for place, row in enumerate(rows):
            source_BS[place, : len(row)], source_BS[place, len(row)] = row, self.eos_id
        return self.encode(torch.from_numpy(source_BS).to(device), torch.from_numpy(lengths_B).to(device))

    def encode(self, source_BS: Tensor, lengths_B: Tensor) -> Start:
        """Encode padded sources of so many real positions."""
        memory = self.model.encode(source_BS, lengths_B)
        return Start(torch.full_like(lengths_B, self.eos_id), self.model.init_state(memory), memory)

    def step(self, ids_N: Tensor, state: Any, memory: Any) -> tuple[NextToken, Any]:
        """One token further."""
        log_probs_NV, state = self.model.step(ids_N, state, memory)
        return LogProbs(log_probs_NV.float()), state
