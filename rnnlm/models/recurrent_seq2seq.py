"""A recurrent encoder and an attending decoder that runs over whole targets.

Shapes: B batch, S source length, T target length, E embedding size, F width of what the output layer reads, H decoder size, M
memory size (both directions of the encoder), V vocabulary, K rows (beams) of one source.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from rnnlm.models.config import CellKind
from rnnlm.models.seq2seq import SOURCE_SITE, TARGET_SITE, Decoding, Seq2Seq
from rnnlm.models.stack import make_cell
from rnnlm.nn.attention import AdditiveAttention, Attention, DotAttention
from rnnlm.nn.cells import Cells
from rnnlm.nn.copy import CopyGate
from rnnlm.nn.dropout import MaskContext, locked_dropout
from rnnlm.nn.encoder import BidirectionalEncoder, join_features
from rnnlm.nn.state import State

AttentionKind = Literal["none", "additive", "dot"]

ENCODER_SITE, DECODER_SITE = 1_000, 2_000
"""Where dropout acts: layer l has the site of its stack + l."""


class RecurrentSeq2Seq(Seq2Seq):
    """Bidirectional encoder; attending decoder, each of whose layers runs over the target at once.

        m_1 .. m_S = encoder(source);    h^l_0 = tanh(W_b [m_S; m_1] + b_b)              (bridge)
        h^1_t = cell(E[y_{t-1}]);        c_t = attention(h^1_t, m)
        h^l_t = cell([h^{l-1}_t; c_t]);  o_t = tanh(W_o [h^L_t; c_t] + b_o)

    The layout is that of GNMT v2 (Wu et al. 2016, as NVIDIA runs it). Without attention c_t is the encoder's summary
    [m_S; m_1] at every t. With input feeding (Luong et al. 2015, section 3.3) the first cell reads [E[y_{t-1}]; o_{t-1}]
    instead, o_0 = 0; then the decoder goes through a target step by step, which takes several times as long.

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
        output_size: F; None: E, which a tied table has.
        input_feeding: whether the decoder reads its last output vector.
        coverage: whether attention reads how much it has attended to each position so far; needs input feeding.
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
        output_size: int | None = None,
        input_feeding: bool = False,
        coverage: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            vocab_size=vocab_size,
            embedding_size=embedding_size,
            share_embeddings=share_embeddings,
            tie_embeddings=tie_embeddings,
            dropout=dropout,
            output_size=output_size,
        )
        output_size = output_size or embedding_size
        direction_size = (hidden_size + 1) // 2
        memory_size = 2 * direction_size
        inputs = [embedding_size, *[memory_size] * (encoder_layers - 1)]
        pairs = []
        for size in inputs:
            ahead, back = (make_cell(cell, input_size=size, hidden_size=direction_size) for _ in range(2))
            pairs.append((ahead, back))
        self.encoder = BidirectionalEncoder(pairs, dropout=dropout, first_site=ENCODER_SITE)
        self.input_feeding = input_feeding
        first_input = embedding_size + output_size if input_feeding else embedding_size
        inputs = [first_input, *[hidden_size + memory_size] * (decoder_layers - 1)]
        self.cells = Cells(make_cell(cell, input_size=size, hidden_size=hidden_size) for size in inputs)
        self.state_sizes = {
            f"{layer}.{name}": size for layer, cell in enumerate(self.cells) for name, size in cell.state_sizes.items()
        }
        self.bridge = nn.Linear(memory_size, sum(self.state_sizes.values()))
        self.attention = _make_attention(attention, query_size=hidden_size, memory_size=memory_size, coverage=coverage)
        assert input_feeding or not coverage, "coverage needs input feeding"
        self.coverage = coverage
        assert self.attention is not None or not copy_source, "copying needs attention"
        self.copy_gate = CopyGate(input_size=hidden_size + memory_size) if copy_source else None
        self.combine = nn.Linear(hidden_size + memory_size, output_size)

    def encode(self, source_BS: Tensor, lengths_B: Tensor, masks: MaskContext | None = None) -> State:
        """See `Seq2Seq.encode`: `summary` [B, M], what attention prepares (`values`, `keys`, `bias`), `ids` for copying."""
        x_BSE = locked_dropout(self.source_embedding(source_BS), self.dropout, masks, SOURCE_SITE)
        memory_BSM, summary_BM = self.encoder(x_BSE, lengths_B, masks)
        parts = {"summary": summary_BM}
        if self.attention is not None:
            parts.update(self.attention.prepare(memory_BSM, lengths_B))
        if self.copy_gate is not None:
            parts["ids"] = source_BS
        return State(parts)

    def init_state(self, memory: State) -> State:
        """See `Seq2Seq.init_state`: the encoder's summary through the bridge; with input feeding `fed` [B, F], with
        coverage `covered` [B, S], both zeros.
        """
        bridged_BX = torch.tanh(self.bridge(memory["summary"])).to(self.bridge.weight.dtype)
        pieces = bridged_BX.split(list(self.state_sizes.values()), dim=1)
        state = dict(zip(self.state_sizes, (piece.contiguous() for piece in pieces), strict=True))
        if self.input_feeding:
            state["fed"] = bridged_BX.new_zeros(memory.num_rows, self.combine.out_features)
        if self.coverage:
            state["covered"] = torch.zeros_like(memory["bias"])
        return State(state)

    def decode(self, input_BT: Tensor, memory: State, masks: MaskContext | None) -> Decoding:
        """See `Seq2Seq.decode`."""
        state = self.init_state(memory)
        x_BTX = locked_dropout(self.target_embedding(input_BT), self.dropout, masks, TARGET_SITE)
        if self.input_feeding:
            steps = []
            for x_BX in x_BTX.unbind(1):
                decoding, state = self._step(x_BX, state, memory, masks)
                steps.append(decoding)
            features, joints, weights = zip(*steps, strict=True)
            attended = [each for each in weights if each is not None]
            weights_BTS = torch.cat(attended, 1) if attended else None
            return Decoding(torch.cat(features, 1), torch.cat(joints, 1), weights_BTS)
        first, *above = self.cells
        x_BTX, _ = first.sequence(x_BTX, state.part("0"))
        context_BTM, weights_BTS = self._attend(x_BTX, memory)
        for layer, cell in enumerate(above, start=1):
            joint_BTX = join_features([x_BTX, context_BTM])
            joint_BTX = locked_dropout(joint_BTX, self.dropout, masks, DECODER_SITE + layer)
            x_BTX, _ = cell.sequence(joint_BTX, state.part(str(layer)))
        joint_BTX = join_features([x_BTX, context_BTM])
        return Decoding(torch.tanh(self.combine(joint_BTX)), joint_BTX, weights_BTS)

    def decode_step(self, input_R: Tensor, state: State, memory: State) -> tuple[Decoding, State]:
        """See `Seq2Seq.decode_step`."""
        return self._step(self.target_embedding(input_R), state, memory, None)

    def _step(self, x_RX: Tensor, state: State, memory: State, masks: MaskContext | None) -> tuple[Decoding, State]:
        """One step of all layers, from embedded tokens [R, E]."""
        first, *above = self.cells
        if self.input_feeding:
            x_RX = torch.cat([x_RX, state["fed"].to(x_RX.dtype)], dim=1)
        x_RX, first_state = first.step(x_RX, state.part("0"))
        sources = memory.num_rows
        covered_BKS = state["covered"].view(sources, -1, state["covered"].shape[1]) if self.coverage else None
        context_BKM, weights_BKS = self._attend(x_RX.view(sources, -1, x_RX.shape[1]), memory, covered_BKS)
        context_RM = context_BKM.reshape(x_RX.shape[0], -1)
        after = [first_state]
        for layer, cell in enumerate(above, start=1):
            joint_RX = torch.cat([x_RX, context_RM], dim=1)
            joint_RX = locked_dropout(joint_RX[:, None], self.dropout, masks, DECODER_SITE + layer)[:, 0]
            x_RX, cell_state = cell.step(joint_RX, state.part(str(layer)))
            after.append(cell_state)
        joint_RX = torch.cat([x_RX, context_RM], dim=1)
        features_RF = torch.tanh(self.combine(joint_RX))
        carried = {"fed": features_RF} if self.input_feeding else {}
        if covered_BKS is not None and weights_BKS is not None:
            carried["covered"] = (covered_BKS + weights_BKS).flatten(0, 1)
        shape = (sources, joint_RX.shape[0] // sources, -1)
        decoding = Decoding(features_RF.view(shape), joint_RX.view(shape), weights_BKS)
        return decoding, State({**State.join(after), **carried})

    def _attend(
        self, query_BTH: Tensor, memory: State, covered_BTS: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        if self.attention is None:
            return memory["summary"][:, None].expand(-1, query_BTH.shape[1], -1), None
        context_BTM, weights_BTS = self.attention(query_BTH, memory, covered_BTS)
        return context_BTM, weights_BTS


def _make_attention(kind: AttentionKind, *, query_size: int, memory_size: int, coverage: bool) -> Attention | None:
    match kind:
        case "none":
            return None
        case "additive":
            return AdditiveAttention(query_size=query_size, memory_size=memory_size, coverage=coverage)
        case "dot":
            return DotAttention(query_size=query_size, memory_size=memory_size, coverage=coverage)
