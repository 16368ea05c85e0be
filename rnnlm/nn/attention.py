"""Attention over an encoded source: what is fixed for a sentence is computed once, queries then come in any number.

Shapes: B batch, T queries (target length), S source length, M memory size, H query size, A attention size; b and t: some of
B and T.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rnnlm.nn.state import State

CHUNK_ELEMENTS = 1 << 19
"""Additive attention is computed over about so many elements of [B, T, S, A] at a time: they stay in a core's cache."""
CHUNK_ELEMENTS_GPU = 1 << 26
"""The same on a GPU: few launches, a quarter of a gigabyte."""


def padding_bias(lengths_B: Tensor, source_length: int, dtype: torch.dtype) -> Tensor:
    """What is added to scores [B, S]: 0 at the positions of a row's source, the lowest number behind its end."""
    positions_S = torch.arange(source_length, device=lengths_B.device)
    padded_BS = positions_S >= lengths_B.to(positions_S.device)[:, None]
    return torch.zeros(padded_BS.shape, dtype=dtype, device=lengths_B.device).masked_fill_(
        padded_BS, torch.finfo(dtype).min
    )


class Attention(nn.Module):
    """Weights over source positions, and the mean of the memory under them. The kinds differ in their scores.

    With coverage (See et al. 2017, equations 10 and 11) scores depend on c_t = a_1 + .. + a_{t-1} too, the weights that each
    position has had so far, with what is learned of it zero at the start.
    """

    def prepare(self, memory_BSM: Tensor, lengths_B: Tensor) -> State:
        """What queries need of a source: `values` [B, S, M], `keys` [B, S, ...] and `bias` [B, S].

        Args:
            memory_BSM: encoded source; positions behind a row's length may hold anything finite.
            lengths_B: positions of each row.
        """
        bias_BS = padding_bias(lengths_B, memory_BSM.shape[1], torch.float32)
        return State({"values": memory_BSM, "keys": self.project_keys(memory_BSM), "bias": bias_BS})

    def forward(self, query_BTH: Tensor, keys: State, covered_BTS: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            query_BTH: the queries.
            keys: what `prepare` gave.
            covered_BTS: c of each query, where the attention has coverage.

        Returns:
            Context [B, T, M] and weights [B, T, S]. Weights are exactly zero at padding; rows sum to one.
        """
        scores_BTS = self.scores(query_BTH, keys["keys"], covered_BTS)
        weights_BTS = torch.softmax(scores_BTS + keys["bias"][:, None], dim=-1)
        return torch.bmm(weights_BTS.to(keys["values"].dtype), keys["values"]), weights_BTS

    @abstractmethod
    def project_keys(self, memory_BSM: Tensor) -> Tensor:
        """The part of the scores that depends on the source alone."""

    @abstractmethod
    def scores(self, query_BTH: Tensor, keys_BSA: Tensor, covered_BTS: Tensor | None = None) -> Tensor:
        """Unmasked scores [B, T, S]."""


class DotAttention(Attention):
    """score(h, m) = h^T W m: "general" of Luong et al. (2015), with keys W m computed once; with coverage h^T W m + w c.

    Args:
        query_size: H.
        memory_size: M.
        coverage: whether scores depend on coverage.
    """

    def __init__(self, *, query_size: int, memory_size: int, coverage: bool = False) -> None:
        super().__init__()
        self.key = nn.Linear(memory_size, query_size, bias=False)
        self.coverage = nn.Parameter(torch.zeros(())) if coverage else None

    def project_keys(self, memory_BSM: Tensor) -> Tensor:
        """W m, [B, S, H]."""
        keys_BSH: Tensor = self.key(memory_BSM)
        return keys_BSH

    def scores(self, query_BTH: Tensor, keys_BSA: Tensor, covered_BTS: Tensor | None = None) -> Tensor:
        """Unmasked scores [B, T, S]."""
        scores_BTS = torch.bmm(query_BTH, keys_BSA.transpose(1, 2))
        if self.coverage is not None:
            assert covered_BTS is not None
            scores_BTS = scores_BTS + self.coverage * covered_BTS
        return scores_BTS


class AdditiveAttention(Attention):
    """score(h, m) = v^T tanh(W h + U m + b), of Bahdanau et al. (2015); with coverage v^T tanh(W h + U m + w c + b).

    It is computed as 2 v^T sigmoid(2 (W h + U m + b)), which differs by the constant sum(v) that softmax takes out:
    sigmoid is three times as fast as tanh on a CPU.

    Args:
        query_size: H, which is A too.
        memory_size: M.
        coverage: whether scores depend on coverage.
    """

    def __init__(self, *, query_size: int, memory_size: int, coverage: bool = False) -> None:
        super().__init__()
        self.query = nn.Linear(query_size, query_size, bias=False)
        self.key = nn.Linear(memory_size, query_size)
        self.score = nn.Parameter(torch.empty(query_size).uniform_(-1, 1) * query_size**-0.5)
        self.coverage = nn.Parameter(torch.zeros(query_size)) if coverage else None

    def project_keys(self, memory_BSM: Tensor) -> Tensor:
        """2 (U m + b), [B, S, A]."""
        keys_BSA: Tensor = self.key(memory_BSM)
        return 2 * keys_BSA

    def scores(self, query_BTH: Tensor, keys_BSA: Tensor, covered_BTS: Tensor | None = None) -> Tensor:
        """Unmasked scores [B, T, S]."""
        query_BTA = 2 * self.query(query_BTH)
        if self.coverage is not None:
            assert covered_BTS is not None
            # Every query has keys of its own, as a row by itself.
            keys_BTSA = keys_BSA[:, None] + (2 * covered_BTS[..., None] * self.coverage).to(keys_BSA.dtype)
            query_BTA, keys_BSA = query_BTA.flatten(0, 1)[:, None], keys_BTSA.flatten(0, 1)
        scores_BTS: Tensor = _AdditiveScores.apply(query_BTA, keys_BSA, (2 * self.score).to(query_BTA.dtype))
        return scores_BTS.view(*query_BTH.shape[:2], -1)


class _AdditiveScores(torch.autograd.Function):
    """v^T sigmoid(q + k) of every query and key, block by block in one buffer that stays in the cache.

    The backward pass computes the sigmoids again, so nothing of the size [B, T, S, A] is ever in memory. On a CPU it is
    memory, not arithmetic, that this attention waits for.
    """

    @staticmethod
    def forward(ctx: Any, query_BTA: Tensor, keys_BSA: Tensor, score_A: Tensor) -> Tensor:
        ctx.save_for_backward(query_BTA, keys_BSA, score_A)
        scores_BTS = query_BTA.new_empty(*query_BTA.shape[:2], keys_BSA.shape[1])
        for rows, times, sigmoid_btSA in _sigmoid_blocks(query_BTA, keys_BSA):
            scores_BTS[rows, times] = sigmoid_btSA @ score_A
        return scores_BTS

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query_BTA, keys_BSA, score_A = ctx.saved_tensors
        sums = torch.promote_types(query_BTA.dtype, torch.float32)
        grad_query_BTA, grad_keys_BSA = (torch.zeros_like(each, dtype=sums) for each in (query_BTA, keys_BSA))
        grad_score_A = torch.zeros_like(score_A, dtype=sums)
        for rows, times, block_btSA in _sigmoid_blocks(query_BTA, keys_BSA):
            grad_btS = grad_BTS[rows, times]
            grad_score_A += grad_btS.reshape(-1) @ block_btSA.flatten(0, 2)
            block_btSA.addcmul_(block_btSA, block_btSA, value=-1).mul_(grad_btS[..., None])
            grad_query_BTA[rows, times] = block_btSA.sum(2, dtype=sums)
            grad_keys_BSA[rows] += block_btSA.sum(1, dtype=sums)
        score_in_sums_A = score_A.to(sums)
        return (
            grad_query_BTA.mul_(score_in_sums_A).to(query_BTA.dtype),
            grad_keys_BSA.mul_(score_in_sums_A).to(keys_BSA.dtype),
            grad_score_A.to(score_A.dtype),
        )


def _sigmoid_blocks(query_BTA: Tensor, keys_BSA: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """sigmoid(q + k), [b, t, S, A], of some rows and queries at a time; each block is overwritten by the next."""
    num_rows, num_queries, _ = query_BTA.shape
    elements = CHUNK_ELEMENTS_GPU if query_BTA.is_cuda else CHUNK_ELEMENTS
    plane = max(1, keys_BSA[:1].numel())
    queries = min(max(1, elements // plane), max(1, num_queries))
    rows = min(max(1, elements // (plane * queries)), max(1, num_rows))
    buffer = query_BTA.new_empty(rows * queries * plane)
    for row in range(0, num_rows, rows):
        keys_b1SA = keys_BSA[row : row + rows, None]
        for query in range(0, num_queries, queries):
            query_bt1A = query_BTA[row : row + rows, query : query + queries, None]
            shape = (*query_bt1A.shape[:2], *keys_BSA.shape[1:])
            block_btSA = buffer[: math.prod(shape)].view(shape)
            torch.add(query_bt1A, keys_b1SA, out=block_btSA).sigmoid_()
            yield slice(row, row + rows), slice(query, query + queries), block_btSA
