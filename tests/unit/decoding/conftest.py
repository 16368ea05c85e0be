"""A decoder whose distribution is an arbitrary, exactly known function of the row and of all tokens so far."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from rnnlm.decoding.decoder import Start
from rnnlm.decoding.next_token import LogProbs


@dataclass
class History:
    tokens_NT: Tensor

    def select(self, rows: Tensor) -> "History":
        return History(self.tokens_NT[rows])


@dataclass
class TableDecoder:
    """Log-probabilities come from a table that is looked up by a hash of (row, tokens so far)."""

    vocab_size: int
    seed: int = 0
    scale: float = 1.0
    end_bonus: float = 0.0
    pad_id: int = 0
    eos_id: int = 1

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        logits = torch.randn(997, self.vocab_size, generator=generator) * self.scale
        logits[:, self.eos_id] += self.end_bonus
        logits[:, self.pad_id] = -30.0
        self.table = torch.log_softmax(logits, -1)
        self.batches: list[int] = []

    def start(self, rows: Sequence[np.ndarray]) -> Start:
        ids = torch.full((len(rows),), self.eos_id)
        row_ids = torch.tensor([int(row[0]) for row in rows])
        return Start(ids, History(row_ids[:, None]), History(row_ids[:, None]))

    def step(self, ids_N: Tensor, state: History, memory: History) -> tuple[LogProbs, History]:
        self.batches.append(len(ids_N))
        beams = len(ids_N) // len(memory.tokens_NT)
        assert torch.equal(state.tokens_NT[:, 0], memory.tokens_NT[:, 0].repeat_interleave(beams))
        history = torch.cat([state.tokens_NT, ids_N[:, None]], 1)
        return LogProbs(self.table[self.slot(history)].clone()), History(history)

    def slot(self, history_NT: Tensor) -> Tensor:
        slot = torch.zeros(len(history_NT), dtype=torch.int64)
        for column in history_NT.T:
            slot = (slot * 31 + column * 7 + 3) % 997
        return slot

    def all_sequences(self, row: int, max_length: int) -> Iterator[tuple[list[int], float, bool]]:
        """Every sequence, its log-probability, and whether it ended before the limit."""
        open_ = [([], 0.0)]
        for length in range(1, max_length + 1):
            longer = []
            for tokens, total in open_:
                log_probs = self.table[self.slot(torch.tensor([[row, self.eos_id, *tokens]]))][0]
                yield tokens, total + float(log_probs[self.eos_id]), True
                words = range(2, self.vocab_size)
                longer += [([*tokens, token], total + float(log_probs[token])) for token in words]
            open_ = longer
            if length == max_length:
                yield from ((tokens, total, False) for tokens, total in open_)


@pytest.fixture
def table_decoder() -> type[TableDecoder]:
    return TableDecoder
