"""An encoder and an attending decoder that runs over whole targets.

Shapes: B batch, S source length, T target length, N real target tokens, E embedding size, H decoder size, M memory
size (both directions of the encoder), V vocabulary, K rows (beams) of one source.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from rnnlm.models.config import CellKind
from rnnlm.models.stack import make_cell, time_major, zero_loss
from rnnlm.nn.attention import AdditiveAttention, Attention, DotAttention
from rnnlm.nn.cells import Cells
from rnnlm.nn.copy import CopyGate, copy_log_mass, mixture_log_probs
from rnnlm.nn.dropout import MaskContext, locked_dropout
from rnnlm.nn.embedding import Embedding
from rnnlm.nn.encoder import BidirectionalEncoder, join_features
from rnnlm.nn.softmax import Copying, linear_cross_entropy
from rnnlm.nn.state import State

AttentionKind = Literal["none", "additive", "dot"]

SOURCE_SITE, TARGET_SITE, OUTPUT_SITE, ENCODER_SITE, DECODER_SITE = 0, 1, 2, 1_000, 2_000
"""Where dropout acts; layer l has the site of its stack + l."""


class Seq2Seq(nn.Module):
    """Bidirectional encoder; decoder without input feeding, so that each of its layers runs over the target at once.

        m_1 .. m_S = encoder(source);    h^l_0 = tanh(W_b [m_S; m_1] + b_b)              (bridge)
        h^1_t = cell(E[y_{t-1}]);        c_t = attention(h^1_t, m)
        h^l_t = cell([h^{l-1}_t; c_t]);  o_t = tanh(W_o [h^L_t; c_t] + b_o);  p_vocab = softmax(E o_t + b)

    The layout is that of GNMT v2 (Wu et al. 2016, as NVIDIA runs it); with `copy_source` the output is a
    pointer-generator (See et al. 2017). Without attention c_t is the encoder's summary [m_S; m_1] at every t.

    Args:
        vocab_size: V, of source and target.
        cell: kind of all cells.
        embedding_size: E.
        hidden_size: H; each direction of the encoder has half as many units, rounded up.
        encoder_layers: pairs of cells in the encoder.
        decoder_layers: cells in the decoder.
        attention: kind of the attention.
        copy_source: whether source tokens can be copied; needs attention.
        share_embeddings: one table for source and target.
        tie_embeddings: the output layer uses the target's table.
        dropout: share of features dropped at embeddings, between layers and before the output layer.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        cell: CellKind,
        embedding_size: int,
        hidden_size: int,
        encoder_layers: int,
        decoder_layers: int,
        attention: AttentionKind,
        copy_source: bool,
        share_embeddings: bool,
        tie_embeddings: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.dropout = dropout
        direction_size = (hidden_size + 1) // 2
        memory_size = 2 * direction_size
        self.target_embedding = Embedding(vocab_size=vocab_size, embedding_size=embedding_size)
        self.separate_source_embedding = (
            None if share_embeddings else Embedding(vocab_size=vocab_size, embedding_size=embedding_size)
        )
        inputs = [embedding_size, *[memory_size] * (encoder_layers - 1)]
        pairs = []
        for size in inputs:
            ahead, back = (make_cell(cell, input_size=size, hidden_size=direction_size) for _ in range(2))
            pairs.append((ahead, back))
        self.encoder = BidirectionalEncoder(pairs, dropout=dropout, first_site=ENCODER_SITE)
        inputs = [embedding_size, *[hidden_size + memory_size] * (decoder_layers - 1)]
        self.cells = Cells(make_cell(cell, input_size=size, hidden_size=hidden_size) for size in inputs)
        self.state_sizes = {
            f"{layer}.{name}": size for layer, cell in enumerate(self.cells) for name, size in cell.state_sizes.items()
        }
        self.bridge = nn.Linear(memory_size, sum(self.state_sizes.values()))
        self.attention = _make_attention(attention, query_size=hidden_size, memory_size=memory_size)
        assert self.attention is not None or not copy_source, "copying needs attention"
        self.copy_gate = CopyGate(input_size=hidden_size + memory_size) if copy_source else None
        self.combine = nn.Linear(hidden_size + memory_size, embedding_size)
        self.output_bias = nn.Parameter(torch.zeros(vocab_size))
        self.untied_weight = (
            None if tie_embeddings else nn.Parameter(torch.randn(vocab_size, embedding_size) * embedding_size**-0.5)
        )

    @property
    def source_embedding(self) -> Embedding:
        """The table of the source's tokens."""
        return self.separate_source_embedding or self.target_embedding

    @property
    def output_weight(self) -> Tensor:
        """The weights of the output layer, [V, E]."""
        return self.target_embedding.weight if self.untied_weight is None else self.untied_weight

    def encode(self, source_BS: Tensor, lengths_B: Tensor, masks: MaskContext | None = None) -> State:
        """All that a decoder needs of its sources, row by row.

        Args:
            source_BS: token ids, padded.
            lengths_B: real positions of each row, at least 1.
            masks: what dropout depends on; without it there is none.

        Returns:
            `summary` [B, M], what attention prepares (`values`, `keys`, `bias`), and `ids` [B, S] for copying.
        """
        x_BSE = locked_dropout(self.source_embedding(source_BS), self.dropout, masks, SOURCE_SITE)
        memory_BSM, summary_BM = self.encoder(x_BSE, lengths_B, masks)
        parts = {"summary": summary_BM}
        if self.attention is not None:
            parts.update(self.attention.prepare(memory_BSM, lengths_B))
        if self.copy_gate is not None:
            parts["ids"] = source_BS
        return State(parts)

    def init_state(self, memory: State) -> State:
        """The decoder's state before its first token, of each row of the memory."""
        bridged_BX = torch.tanh(self.bridge(memory["summary"])).to(self.bridge.weight.dtype)
        pieces = bridged_BX.split(list(self.state_sizes.values()), dim=1)
        return State(dict(zip(self.state_sizes, (piece.contiguous() for piece in pieces), strict=True)))

    def loss(
        self,
        source_BS: Tensor,
        lengths_B: Tensor,
        input_BT: Tensor,
        target_BT: Tensor,
        *,
        masks: MaskContext | None = None,
        label_smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Summed loss of the targets.

        Args:
            source_BS: token ids, padded.
            lengths_B: real positions of each source.
            input_BT: the target, one position late.
            target_BT: token ids; padding is not counted.
            masks: what dropout depends on.
            label_smoothing: share of a target's probability that is spread over the vocabulary.

        Returns:
            The training objective with its gradient, and the true nats (float64, without smoothing and gradient).
        """
        if not target_BT.numel():
            return zero_loss(self)
        memory = self.encode(source_BS, lengths_B, masks)
        objective, nats_N = self._cross_entropy(input_BT, target_BT, memory, masks, label_smoothing)
        return objective, nats_N.sum(dtype=torch.float64)

    @torch.no_grad()
    def token_nats(self, source_BS: Tensor, lengths_B: Tensor, input_BT: Tensor, target_BT: Tensor) -> Tensor:
        """Nats of each target, [B, T], zero at padding."""
        memory = self.encode(source_BS, lengths_B)
        _, nats_N = self._cross_entropy(input_BT, target_BT, memory, None, 0.0)
        return nats_N.view(target_BT.shape[1], -1).t()

    @torch.no_grad()
    def step(self, input_R: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
        """One token for each row, for decoding; R = B K rows, where the K rows of a source stand together.

        Returns:
            Logarithms of the next token's probabilities [R, V], copying included, and the state after this token.
        """
        first, *above = self.cells
        x_RX, first_state = first.step(self.target_embedding(input_R), state.part("0"))
        sources = memory.num_rows
        context_BKM, weights_BKS = self._attend(x_RX.view(sources, -1, x_RX.shape[1]), memory)
        context_RM = context_BKM.reshape(x_RX.shape[0], -1)
        after = [first_state]
        for layer, cell in enumerate(above, start=1):
            x_RX, cell_state = cell.step(torch.cat([x_RX, context_RM], dim=1), state.part(str(layer)))
            after.append(cell_state)
        joint_RX = torch.cat([x_RX, context_RM], dim=1)
        features_RE = torch.tanh(self.combine(joint_RX))
        logits_RV = nn.functional.linear(features_RE, self.output_weight, self.output_bias)
        log_probs_RV = torch.log_softmax(logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32)), dim=1)
        if self.copy_gate is not None and weights_BKS is not None:
            log_generate_R, log_copy_R = self.copy_gate(joint_RX)
            ids_RS = memory["ids"].repeat_interleave(weights_BKS.shape[1], dim=0)
            weights_RS = weights_BKS.reshape(ids_RS.shape)
            log_probs_RV = mixture_log_probs(log_probs_RV, log_generate_R, log_copy_R, weights_RS, ids_RS)
        return log_probs_RV, State.join(after)

    def _attend(self, query_BTH: Tensor, memory: State) -> tuple[Tensor, Tensor | None]:
        if self.attention is None:
            return memory["summary"][:, None].expand(-1, query_BTH.shape[1], -1), None
        context_BTM, weights_BTS = self.attention(query_BTH, memory)
        return context_BTM, weights_BTS

    def _decode(self, input_BT: Tensor, memory: State, masks: MaskContext | None) -> tuple[Tensor, Tensor | None]:
        """The whole target: [h^L; c] of shape [B, T, H + M], and the attention [B, T, S]."""
        state = self.init_state(memory)
        x_BTX = locked_dropout(self.target_embedding(input_BT), self.dropout, masks, TARGET_SITE)
        first, *above = self.cells
        x_BTX, _ = first.sequence(x_BTX, state.part("0"))
        context_BTM, weights_BTS = self._attend(x_BTX, memory)
        for layer, cell in enumerate(above, start=1):
            joint_BTX = join_features([x_BTX, context_BTM])
            joint_BTX = locked_dropout(joint_BTX, self.dropout, masks, DECODER_SITE + layer)
            x_BTX, _ = cell.sequence(joint_BTX, state.part(str(layer)))
        return join_features([x_BTX, context_BTM]), weights_BTS

    def _cross_entropy(
        self,
        input_BT: Tensor,
        target_BT: Tensor,
        memory: State,
        masks: MaskContext | None,
        label_smoothing: float,
    ) -> tuple[Tensor, Tensor]:
        """Objective, and the nats of all positions [N] with time outermost."""
        joint_BTX, weights_BTS = self._decode(input_BT, memory, masks)
        features_BTE = torch.tanh(self.combine(joint_BTX))
        features_BTE = locked_dropout(features_BTE, self.dropout, masks, OUTPUT_SITE)
        copying = None
        if self.copy_gate is not None and weights_BTS is not None:
            log_generate_BT, log_copy_BT = self.copy_gate(joint_BTX)
            log_copy_BT = log_copy_BT + copy_log_mass(weights_BTS, memory["ids"], target_BT)
            copying = Copying(log_generate_BT.t().reshape(-1), log_copy_BT.t().reshape(-1))
        return linear_cross_entropy(
            time_major(features_BTE),
            self.output_weight,
            self.output_bias,
            target_BT.t().reshape(-1),
            copying=copying,
            label_smoothing=label_smoothing,
        )


def _make_attention(kind: AttentionKind, *, query_size: int, memory_size: int) -> Attention | None:
    match kind:
        case "none":
            return None
        case "additive":
            return AdditiveAttention(query_size=query_size, memory_size=memory_size)
        case "dot":
            return DotAttention(query_size=query_size, memory_size=memory_size)
