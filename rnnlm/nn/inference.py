"""Recurrent layers prepared for decoding on a CPU: single steps, weights laid out once, no gradients.

What differs from the modules that they are made from:

- the lowest layer's product with a token's vector is a row of a table, made once for the vocabulary;
- a layer's two products are one, over what it reads and its own last output together, where no norm comes between them;
- tanh(x) = 2 sigmoid(2 x) - 1: the candidate's weights are doubled, so that one sigmoid serves all gates, and twice the cell
  state is kept;
- additive attention has sigmoid(q + k) = 1 / (1 + 2^-q' 2^-k'), q' = q log2(e): an exponential of each query and key in place of
  one of each pair.

Shapes: N hypotheses, B sources, K = N / B, S source length, H hidden size, G = 4 H gates, M memory size, V vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rnnlm.nn.attention import AdditiveAttention, Attention, DotAttention, padding_bias
from rnnlm.nn.cells import LstmCell
from rnnlm.nn.embedding import Embedding
from rnnlm.nn.encoder import BidirectionalEncoder
from rnnlm.nn.products import NormalizedProduct, Precision, Product, carry, carry_twice, uncarry
from rnnlm.nn.state import State

TABLE_BYTES = 1 << 28
"""A table of gate inputs may take so much; a larger one is not made, and token vectors are multiplied at each step."""
LARGEST_EXPONENT = 115.0
"""Of 2^-q' and 2^-k', which are neither 0 nor infinite so; their product may be, and gives a sigmoid of 1 or 0, as it should. Where
a query's or a key's part in a tanh is beyond 40, it counts as 40.
"""
CACHE_ELEMENTS = 1 << 17
"""Additive attention is computed over about so many elements of [N, S, H] at a time, in half a megabyte."""


def _doubled(cell: LstmCell, weight_G: Tensor) -> Tensor:
    """A cell's weights or bias, the candidate's rows doubled."""
    double_G = torch.ones(4, cell.hidden_size)
    double_G[2] = 2
    return weight_G.detach().float() * double_G.view(-1, *[1] * (weight_G.dim() - 1))


def _after(gates_NG: Tensor, twice_NH: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """Hidden state (carried) and twice the cell state, from what it was and the sums at the gates, which are overwritten."""
    i_NH, f_NH, g_NH, o_NH = gates_NG.sigmoid_().chunk(4, dim=1)
    twice_NH = torch.mul(f_NH, twice_NH).addcmul_(i_NH, g_NH.sub_(0.5), value=4)
    return carry_twice(torch.sigmoid(twice_NH).sub_(0.5), o_NH, precision), twice_NH


class TokenLstm:
    """The lowest layer, which reads tokens, their vectors normalized where the model does that."""

    def __init__(
        self, embedding: Embedding, cell: LstmCell, precision: Precision, norm: nn.LayerNorm | None = None
    ) -> None:
        weight_GE, bias_G = _doubled(cell, cell.weight_xh), _doubled(cell, cell.bias_h)
        words_VE = embedding.weight.detach().float()
        if norm is None:
            weight_GE *= embedding.scale
        else:
            words_VE = norm(words_VE * embedding.scale).detach()
        self._words_VE: Tensor | None = None
        if len(words_VE) * len(bias_G) * 4 <= TABLE_BYTES:
            self._table_VG = torch.addmm(bias_G, words_VE, weight_GE.t())
        else:
            self._words_VE, self._weight_GE, self._bias_G = words_VE, weight_GE, bias_G
        self._recurrent = Product(_doubled(cell, cell.weight_hh), None, precision)
        self.precision = precision

    def gates(self, ids_N: Tensor, hidden_NH: Tensor) -> Tensor:
        """The sums at the gates, [N, G], of tokens and a carried state."""
        if self._words_VE is None:
            read_NG = self._table_VG.index_select(0, ids_N)
        else:
            read_NG = torch.addmm(self._bias_G, self._words_VE.index_select(0, ids_N), self._weight_GE.t())
        return self._recurrent.add_to(read_NG, hidden_NH)

    def step(self, ids_N: Tensor, hidden_NH: Tensor, twice_NH: Tensor) -> tuple[Tensor, Tensor]:
        """One token further: hidden state (carried) and twice the cell state."""
        return _after(self.gates(ids_N, hidden_NH), twice_NH, self.precision)


class UpperLstm:
    """A layer that reads what is in (-1, 1): outputs of layers below, a mean of encoded positions; behind a norm or not."""

    def __init__(self, cell: LstmCell, precision: Precision, norm: nn.LayerNorm | None = None) -> None:
        read_GX, hidden_GH, bias_G = (_doubled(cell, each) for each in (cell.weight_xh, cell.weight_hh, cell.bias_h))
        self._read: NormalizedProduct | None = None
        if norm is None:
            self._joint = Product(torch.cat([read_GX, hidden_GH], 1), bias_G, precision)
        else:
            self._read = NormalizedProduct(norm, read_GX, bias_G, precision)
            self._recurrent = Product(hidden_GH, None, precision)
        self.precision = precision

    def gates(self, read_NX: Tensor, hidden_NH: Tensor) -> Tensor:
        """The sums at the gates, [N, G], of carried inputs and state."""
        if self._read is None:
            return self._joint(torch.cat([read_NX, hidden_NH], 1))
        return self._recurrent.add_to(self._read(read_NX), hidden_NH)

    def step(self, read_NX: Tensor, hidden_NH: Tensor, twice_NH: Tensor) -> tuple[Tensor, Tensor]:
        """One step from carried inputs: hidden state (carried) and twice the cell state."""
        return _after(self.gates(read_NX, hidden_NH), twice_NH, self.precision)


class PreparedEncoder:
    """The encoder of `rnnlm.nn.encoder`, step by step; what is behind a row's end is finite, and means nothing."""

    def __init__(self, embedding: Embedding, encoder: BidirectionalEncoder, precision: Precision) -> None:
        directions = [list(encoder.forward_cells), list(encoder.backward_cells)]
        assert all(isinstance(cell, LstmCell) for cells in directions for cell in cells)
        self._layers = [
            [
                UpperLstm(cell, precision) if layer else TokenLstm(embedding, cell, precision)
                for cell in pair
                if isinstance(cell, LstmCell)
            ]
            for layer, pair in enumerate(zip(*directions, strict=True))
        ]
        self._size = directions[0][0].hidden_size
        self._precision = precision

    def __call__(self, source_BS: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Encoded positions [B, S, M], and the last states of both directions [B, M], all carried."""
        time_S1, rows_B = torch.arange(source_BS.shape[1])[:, None], torch.arange(len(source_BS))
        turned_SB = torch.where(time_S1 < lengths_B, lengths_B - 1 - time_S1, time_S1)
        read = source_BS.t()
        for layers in self._layers:
            ahead_SBH, back_SBH = self._run(layers, [read, read[turned_SB, rows_B]])
            read = torch.cat([ahead_SBH, back_SBH[turned_SB, rows_B]], dim=-1)
        summary_BM = torch.cat([ahead_SBH[lengths_B - 1, rows_B], back_SBH[lengths_B - 1, rows_B]], dim=-1)
        return read.transpose(0, 1).contiguous(), summary_BM

    def _run(self, layers: Sequence[TokenLstm | UpperLstm], read: Sequence[Tensor]) -> Sequence[Tensor]:
        """Hidden states [S, B, H] of both directions, from what each reads: ids [S, B], or carried [S, B, M]."""
        twice_2H = torch.zeros(2 * read[0].shape[1], self._size)
        hidden_2H = carry(twice_2H, self._precision)
        made = []
        for each in zip(*(steps.unbind(0) for steps in read), strict=True):
            # The rows of both directions, one below the other, wherever the weights do not matter.
            gates = [layer.gates(*given) for layer, *given in zip(layers, each, hidden_2H.chunk(2), strict=True)]
            hidden_2H, twice_2H = _after(torch.cat(gates), twice_2H, self._precision)
            made.append(hidden_2H)
        return torch.stack(made).chunk(2, dim=1)


class PreparedAttention:
    """The attention of `rnnlm.nn.attention` for single queries; keys are made once, and shared by the beams of a source."""

    def __init__(self, attention: Attention, precision: Precision) -> None:
        assert isinstance(attention, AdditiveAttention | DotAttention)
        scale = -2 / math.log(2) if isinstance(attention, AdditiveAttention) else 1
        bias_A = attention.key.bias
        self._key = Product(scale * attention.key.weight, None if bias_A is None else scale * bias_A, precision)
        self._query: Product | None = None
        if isinstance(attention, AdditiveAttention):
            self._query = Product(scale * attention.query.weight, None, precision)
            self._score_A = 2 * attention.score.detach().float()
            self._one_A = torch.ones_like(self._score_A)

    def prepare(self, memory_BSM: Tensor, lengths_B: Tensor) -> dict[str, Tensor]:
        """What queries need of a carried memory, in fp32: `values` [B, S, M], `keys` [B, S, A] and `bias` [B, 1, S]."""
        keys_BSA = self._key(memory_BSM.flatten(0, 1)).view(*memory_BSM.shape[:2], -1)
        if self._query is not None:
            keys_BSA = _power(keys_BSA)
        bias_BS = padding_bias(lengths_B, memory_BSM.shape[1], torch.float32)
        return {"values": uncarry(memory_BSM), "keys": keys_BSA, "bias": bias_BS[:, None]}

    def __call__(self, hidden_NH: Tensor, memory: State) -> tuple[Tensor, Tensor]:
        """Attend with carried hidden states: contexts [N, M] and weights [N, S], both in fp32."""
        num_sources, length, size = memory["keys"].shape
        if self._query is None:
            query_BKA = uncarry(hidden_NH).view(num_sources, -1, size)
            scores_BKS = torch.bmm(query_BKA, memory["keys"].transpose(1, 2))
        else:
            query_BKA = _power(self._query(hidden_NH)).view(num_sources, -1, size)
            scores_BKS = self._additive(query_BKA, memory["keys"])
        weights_BKS = torch.softmax(scores_BKS.add_(memory["bias"]), dim=-1)
        context_BKM = torch.bmm(weights_BKS, memory["values"])
        return context_BKM.view(-1, context_BKM.shape[2]), weights_BKS.view(-1, length)

    def _additive(self, query_BKA: Tensor, keys_BSA: Tensor) -> Tensor:
        """2 v^T sigmoid(q + k), [B, K, S], from 2^-q' and 2^-k'."""
        num_sources, num_beams, size = query_BKA.shape
        length = keys_BSA.shape[1]
        scores_BKS = query_BKA.new_empty(num_sources, num_beams, length)
        rows = min(max(1, CACHE_ELEMENTS // (num_beams * length * size)), num_sources)
        buffer_bKSA = query_BKA.new_empty(rows, num_beams, length, size)
        for row in range(0, num_sources, rows):
            some = slice(row, row + rows)
            sigmoid_bKSA = buffer_bKSA[: num_sources - row]
            torch.addcmul(self._one_A, query_BKA[some, :, None], keys_BSA[some, None], out=sigmoid_bKSA).reciprocal_()
            torch.matmul(sigmoid_bKSA, self._score_A, out=scores_BKS[some])
        return scores_BKS


def _power(exponent: Tensor) -> Tensor:
    """2 to the power of numbers within bounds, in place."""
    return exponent.clamp_(-LARGEST_EXPONENT, LARGEST_EXPONENT).exp2_()
