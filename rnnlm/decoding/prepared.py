"""Decoders prepared for a CPU: recurrent models of LSTM cells whose weights were laid out for single steps.

Hidden states are in (-1, 1) and are kept as products read them (`rnnlm.nn.products.carry`), cell states doubled, in fp32.

Shapes: B rows of the input, N hypotheses, S source length, M memory size, H hidden size, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rnnlm.decoding.decoder import LanguageModelDecoder, Seq2SeqDecoder, Start
from rnnlm.decoding.next_token import Copied, NextToken, OutputLayer, PreparedNextToken
from rnnlm.models.recurrent_lm import RecurrentLanguageModel
from rnnlm.models.recurrent_seq2seq import RecurrentSeq2Seq
from rnnlm.nn.cells import Cell, LstmCell
from rnnlm.nn.inference import PreparedAttention, PreparedEncoder, TokenLstm, UpperLstm
from rnnlm.nn.products import Precision, Product, carry, uncarry
from rnnlm.nn.state import State


def is_preparable(model: object) -> bool:
    """Whether one of this module's decoders serves a model."""
    if isinstance(model, RecurrentLanguageModel):
        plain = not (model.residual or model.softmax_cutoffs)
        return plain and _on_cpu(model) and all(isinstance(cell, LstmCell) for cell in model.cells)
    if isinstance(model, RecurrentSeq2Seq):
        cells = [*model.cells, *model.encoder.forward_cells]
        return not model.input_feeding and _on_cpu(model) and all(isinstance(cell, LstmCell) for cell in cells)
    return False


def _on_cpu(model: nn.Module) -> bool:
    weight = next(model.parameters())
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def _lstm(cell: Cell) -> LstmCell:
    assert isinstance(cell, LstmCell)
    return cell


class PreparedLanguageModelDecoder(LanguageModelDecoder):
    """Continues prompts with a recurrent language model; prompts are read by the model itself."""

    def __init__(
        self, model: RecurrentLanguageModel, *, pad_id: int, eos_id: int, vocab_size: int, precision: Precision
    ) -> None:
        super().__init__(model, pad_id=pad_id, eos_id=eos_id, vocab_size=vocab_size)
        first, *above = (_lstm(cell) for cell in model.cells)
        norm, *norms, last_norm = (each if isinstance(each, nn.LayerNorm) else None for each in model.norms)
        self._first = TokenLstm(model.embedding, first, precision, norm)
        self._above = [UpperLstm(cell, precision, norm) for cell, norm in zip(above, norms, strict=True)]
        self._output = OutputLayer(model.output_weight, model.output_bias, precision, last_norm)
        self._precision = precision

    def start(self, rows: Sequence[np.ndarray]) -> Start:
        """See `LanguageModelDecoder.start`."""
        ids_B, state, memory = super().start(rows)
        return Start(ids_B, _kept(state, self._precision), memory)

    def step(self, ids_N: Tensor, state: Any, memory: Any) -> tuple[NextToken, Any]:  # noqa: ARG002
        """One token further."""
        hidden_NH, cell_NH = self._first.step(ids_N, state["0.hidden"], state["0.cell"])
        after = {"0.hidden": hidden_NH, "0.cell": cell_NH}
        for number, layer in enumerate(self._above, start=1):
            names = f"{number}.hidden", f"{number}.cell"
            hidden_NH, cell_NH = layer.step(hidden_NH, *(state[name] for name in names))
            after |= zip(names, (hidden_NH, cell_NH), strict=True)
        return PreparedNextToken(self._output, hidden_NH), State(after)


class PreparedSeq2SeqDecoder(Seq2SeqDecoder):
    """Answers sources with a recurrent encoder and decoder, with or without attention and copying."""

    def __init__(
        self, model: RecurrentSeq2Seq, *, pad_id: int, eos_id: int, vocab_size: int, precision: Precision
    ) -> None:
        super().__init__(model, pad_id=pad_id, eos_id=eos_id, vocab_size=vocab_size)
        self._model, self._precision = model, precision
        first, *above = (_lstm(cell) for cell in model.cells)
        self._encoder = PreparedEncoder(model.source_embedding, model.encoder, precision)
        self._bridge = Product(model.bridge.weight, model.bridge.bias, precision)
        self._first = TokenLstm(model.target_embedding, first, precision)
        self._above = [UpperLstm(cell, precision) for cell in above]
        self._attention = None if model.attention is None else PreparedAttention(model.attention, precision)
        self._combine = Product(model.combine.weight, model.combine.bias, precision)
        self._output = OutputLayer(model.output_weight, model.output_bias, precision)

    def encode(self, source_BS: Tensor, lengths_B: Tensor) -> Start:
        """See `Seq2SeqDecoder.encode`."""
        memory_BSM, summary_BM = self._encoder(source_BS, lengths_B)
        memory = {"summary": summary_BM} if self._attention is None else self._attention.prepare(memory_BSM, lengths_B)
        if self._model.copy_gate is not None:
            memory |= {"ids": source_BS, "first": _first_places(source_BS, self.vocab_size)}
        bridged = torch.split(torch.tanh(self._bridge(summary_BM)), list(self._model.state_sizes.values()), dim=1)
        state = _kept(dict(zip(self._model.state_sizes, bridged, strict=True)), self._precision)
        ids_B = torch.full_like(lengths_B, self.eos_id)
        return Start(ids_B, state, State(memory))

    def step(self, ids_N: Tensor, state: Any, memory: Any) -> tuple[NextToken, Any]:
        """One token further."""
        hidden_NH, cell_NH = self._first.step(ids_N, state["0.hidden"], state["0.cell"])
        after = {"0.hidden": hidden_NH, "0.cell": cell_NH}
        context_NM, weights_NS = self._attend(hidden_NH, memory)
        for number, layer in enumerate(self._above, start=1):
            names = f"{number}.hidden", f"{number}.cell"
            hidden_NH, cell_NH = layer.step(torch.cat([hidden_NH, context_NM], 1), *(state[name] for name in names))
            after |= zip(names, (hidden_NH, cell_NH), strict=True)
        joint_NX = torch.cat([hidden_NH, context_NM], 1)
        copied = None if weights_NS is None else self._copied(joint_NX, weights_NS, memory)
        return PreparedNextToken(self._output, self._combine.tanh(joint_NX), copied), State(after)

    def _attend(self, hidden_NH: Tensor, memory: State) -> tuple[Tensor, Tensor | None]:
        """Carried contexts, and the weights of attention, if there is any."""
        if self._attention is None:
            beams = len(hidden_NH) // memory.num_rows
            return memory["summary"].repeat_interleave(beams, dim=0), None
        context_NM, weights_NS = self._attention(hidden_NH, memory)
        return carry(context_NM, self._precision), weights_NS

    def _copied(self, joint_NX: Tensor, weights_NS: Tensor, memory: State) -> Copied | None:
        if self._model.copy_gate is None:
            return None
        log_generate_N, log_copy_N = self._model.copy_gate(uncarry(joint_NX))
        beams = len(weights_NS) // memory.num_rows
        ids_NS, first_NS = (memory[name].repeat_interleave(beams, dim=0) for name in ("ids", "first"))
        mass_NS = torch.zeros_like(weights_NS).scatter_add_(1, first_NS, weights_NS).gather(1, first_NS)
        return Copied(log_generate_N, log_copy_N, mass_NS, ids_NS)


def _kept(state: Mapping[str, Tensor], precision: Precision) -> State:
    """A model's states as the layers of `rnnlm.nn.inference` keep them."""
    return State(
        {name: carry(x, precision) if name.endswith("hidden") else torch.mul(x, 2) for name, x in state.items()}
    )


def _first_places(ids_BS: Tensor, vocab_size: int) -> Tensor:
    """For each position the first one of the row that holds the same token."""
    places_BS = torch.arange(ids_BS.shape[1]).expand_as(ids_BS)
    first_BV = torch.full((len(ids_BS), vocab_size), ids_BS.shape[1])
    return first_BV.scatter_reduce_(1, ids_BS, places_BS, "amin").gather(1, ids_BS)
