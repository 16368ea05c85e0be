"""Attention over an encoded source: what is fixed for a sentence is computed once, queries then come in any number.

Shapes: B batch, T queries (target length), S source length, M memory size, H query size, A attention size.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rnnlm.nn.state import State

CHUNK_ELEMENTS = 1 << 24
"""Additive attention is computed over so many elements of [B, T, S, A] at a time."""


def padding_bias(lengths_B: Tensor, source_length: int, dtype: torch.dtype) -> Tensor:
    """What is added to scores [B, S]: 0 at the positions of a row's source, the lowest number behind its end."""
    positions_S = torch.arange(source_length, device=lengths_B.device)
    padded_BS = positions_S >= lengths_B.to(positions_S.device)[:, None]
    return torch.zeros(padded_BS.shape, dtype=dtype, device=lengths_B.device).masked_fill_(
        padded_BS, torch.finfo(dtype).min
    )


class Attention(nn.Module):
    """Weights over source positions, and the mean of the memory under them. The kinds differ in their scores."""

    def prepare(self, memory_BSM: Tensor, lengths_B: Tensor) -> State:
        """What queries need of a source: `values` [B, S, M], `keys` [B, S, ...] and `bias` [B, S].

        Args:
            memory_BSM: encoded source; positions behind a row's length may hold anything finite.
            lengths_B: positions of each row.
        """
        bias_BS = padding_bias(lengths_B, memory_BSM.shape[1], torch.float32)
        return State({"values": memory_BSM, "keys": self.project_keys(memory_BSM), "bias": bias_BS})

    def forward(self, query_BTH: Tensor, keys: State) -> tuple[Tensor, Tensor]:
        """Attend.

        Returns:
            Context [B, T, M] and weights [B, T, S]. Weights are exactly zero at padding; rows sum to one.
        """
        scores_BTS = self.scores(query_BTH, keys["keys"])
        weights_BTS = torch.softmax(scores_BTS + keys["bias"][:, None], dim=-1)
        return torch.bmm(weights_BTS.to(keys["values"].dtype), keys["values"]), weights_BTS

    @abstractmethod
    def project_keys(self, memory_BSM: Tensor) -> Tensor:
        """The part of the scores that depends on the source alone."""

    @abstractmethod
    def scores(self, query_BTH: Tensor, keys_BSA: Tensor) -> Tensor:
        """Unmasked scores [B, T, S]."""


class DotAttention(Attention):
    """score(h, m) = h^T W m: "general" of Luong et al. (2015), with keys W m computed once.

    Args:
        query_size: H.
        memory_size: M.
    """

    def __init__(self, *, query_size: int, memory_size: int) -> None:
        super().__init__()
        self.key = nn.Linear(memory_size, query_size, bias=False)

    def project_keys(self, memory_BSM: Tensor) -> Tensor:
        """W m, [B, S, H]."""
        keys_BSH: Tensor = self.key(memory_BSM)
        return keys_BSH

    def scores(self, query_BTH: Tensor, keys_BSA: Tensor) -> Tensor:
        """Unmasked scores [B, T, S]."""
        return torch.bmm(query_BTH, keys_BSA.transpose(1, 2))


class AdditiveAttention(Attention):
    """score(h, m) = v^T tanh(W h + U m + b), of Bahdanau et al. (2015).

    It is computed as 2 v^T sigmoid(2 (W h + U m + b)), which differs by the constant sum(v) that softmax takes out:
    sigmoid is three times as fast as tanh on a CPU.

    Args:
        query_size: H, which is A too.
        memory_size: M.
    """

    def __init__(self, *, query_size: int, memory_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(query_size, query_size, bias=False)
        self.key = nn.Linear(memory_size, query_size)
        self.score = nn.Parameter(torch.empty(query_size).uniform_(-1, 1) * query_size**-0.5)

    def project_keys(self, memory_BSM: Tensor) -> Tensor:
        """2 (U m + b), [B, S, A]."""
        keys_BSA: Tensor = self.key(memory_BSM)
        return 2 * keys_BSA

    def scores(self, query_BTH: Tensor, keys_BSA: Tensor) -> Tensor:
        """Unmasked scores [B, T, S], a few queries at a time where [B, T, S, A] is large."""
        query_BTA = 2 * self.query(query_BTH)
        chunk = max(1, CHUNK_ELEMENTS // max(1, keys_BSA.numel()))
        if query_BTA.shape[1] <= chunk:
            return self._scores(query_BTA, keys_BSA)
        pieces = []
        for piece_BtA in query_BTA.split(chunk, dim=1):
            # Kept for the backward pass, the pieces would together be the [B, T, S, A] that chunks are to avoid.
            scores = checkpoint(self._scores, piece_BtA, keys_BSA, use_reentrant=False, preserve_rng_state=False)
            pieces.append(scores)
        return torch.cat(pieces, dim=1)

    def _scores(self, query_BTA: Tensor, keys_BSA: Tensor) -> Tensor:
        return torch.sigmoid(query_BTA[:, :, None] + keys_BSA[:, None]) @ (2 * self.score).to(query_BTA.dtype)
