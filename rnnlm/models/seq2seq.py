"""From source to target: what is common to recurrent models and Transformers.

Shapes: B batch, S source length, T target length, N real target tokens, E embedding size, F width of what the output layer
reads, X of what the copy gate reads, V vocabulary, K rows (beams) of one source.
"""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rnnlm.models.stack import time_major, zero_loss
from rnnlm.nn.attention import Attention
from rnnlm.nn.copy import CopyGate, copy_log_mass, mixture_log_probs
from rnnlm.nn.dropout import MaskContext, locked_dropout
from rnnlm.nn.embedding import Embedding
from rnnlm.nn.sampled_softmax import cross_entropy
from rnnlm.nn.softmax import PAD_ID, Copying
from rnnlm.nn.state import State

SOURCE_SITE, TARGET_SITE, OUTPUT_SITE, SAMPLE_SITE = 0, 1, 2, 3
"""Where dropout acts around the layers, and where the vocabulary is sampled."""


class Decoding(NamedTuple):
    """What a decoder hands to the output layer; in a step for decoding T is K."""

    features: Tensor
    """[B, T, F]"""
    joint: Tensor
    """What the copy gate reads, [B, T, X]."""
    weights: Tensor | None
    """Attention, [B, T, S], zero at padding."""


class Seq2Seq(nn.Module):
    """Embeddings, an encoder, a decoder, and a softmax over the vocabulary, optionally mixed with copying.

        p_vocab = softmax(W o_t + b);  p = p_gen p_vocab + (1 - p_gen) sum_{s: x_s = y} a_s

    With `copy_gate` the output is a pointer-generator (See et al. 2017).

    Args:
        vocab_size: V, of source and target.
        embedding_size: E.
        share_embeddings: one table for source and target.
        tie_embeddings: the output layer uses the target's table.
        dropout: share of features dropped before the output layer.
        output_size: F; None: E, which a tied table has.
    """

    attention: Attention | None
    """Whose weights are shown, and copied by."""
    copy_gate: CopyGate | None

    def __init__(
        self,
        *,
        vocab_size: int,
        embedding_size: int,
        share_embeddings: bool,
        tie_embeddings: bool,
        dropout: float,
        output_size: int | None = None,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.dropout = dropout
        self.target_embedding = Embedding(vocab_size=vocab_size, embedding_size=embedding_size)
        self.separate_source_embedding = (
            None if share_embeddings else Embedding(vocab_size=vocab_size, embedding_size=embedding_size)
        )
        self.output_bias = nn.Parameter(torch.zeros(vocab_size))
        output_size = output_size or embedding_size
        assert not tie_embeddings or output_size == embedding_size, "a tied table has the embedding's size"
        self.untied_weight = (
            None if tie_embeddings else nn.Parameter(torch.randn(vocab_size, output_size) * output_size**-0.5)
        )

    @property
    def source_embedding(self) -> Embedding:
        """The table of the source's tokens."""
        return self.separate_source_embedding or self.target_embedding

    @property
    def output_weight(self) -> Tensor:
        """The weights of the output layer, [V, F]."""
        return self.target_embedding.weight if self.untied_weight is None else self.untied_weight

    @abstractmethod
    def encode(self, source_BS: Tensor, lengths_B: Tensor, masks: MaskContext | None = None) -> State:
        """All that a decoder needs of its sources, row by row: with copying, `ids` [B, S] too.

        Args:
            source_BS: token ids, padded.
            lengths_B: real positions of each row, at least 1.
            masks: what dropout depends on; without it there is none.
        """

    @abstractmethod
    def init_state(self, memory: State) -> State:
        """The decoder's state before its first token, of each row of the memory."""

    @abstractmethod
    def decode(self, input_BT: Tensor, memory: State, masks: MaskContext | None) -> Decoding:
        """Run the decoder over whole targets."""

    @abstractmethod
    def decode_step(self, input_R: Tensor, state: State, memory: State) -> tuple[Decoding, State]:
        """One token for each row; R = B K rows, where the K rows of a source stand together."""

    def loss(
        self,
        source_BS: Tensor,
        lengths_B: Tensor,
        input_BT: Tensor,
        target_BT: Tensor,
        *,
        masks: MaskContext | None = None,
        label_smoothing: float = 0.0,
        coverage_reg: float = 0.0,
        softmax_samples: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Summed loss of the targets.

        Args:
            source_BS: token ids, padded.
            lengths_B: real positions of each source.
            input_BT: the target, one position late.
            target_BT: token ids; padding is not counted.
            masks: what dropout depends on.
            label_smoothing: share of a target's probability that is spread over the vocabulary.
            coverage_reg: lambda; attention that returns to where it was costs lambda sum_s min(a_ts, sum_{u<t} a_us) at
                each target (See et al. 2017, equation 12). None without attention.
            softmax_samples: tokens drawn from the vocabulary that targets are told from, see `rnnlm.nn.sampled_softmax`;
                for training, that is with masks. None: all.

        Returns:
            The training objective with its gradient, and the true nats (float64, of the targets alone, without gradient; with
            samples an estimate).
        """
        if not target_BT.numel():
            return zero_loss(self)
        memory = self.encode(source_BS, lengths_B, masks)
        decoding = self.decode(input_BT, memory, masks)
        objective, nats_N = self._cross_entropy(decoding, target_BT, memory, masks, label_smoothing, softmax_samples)
        if coverage_reg and decoding.weights is not None:
            weights_BTS = decoding.weights
            covered_BTS = weights_BTS.cumsum(1) - weights_BTS
            again_BT = torch.minimum(weights_BTS, covered_BTS).sum(-1)
            objective = objective + coverage_reg * (again_BT * (target_BT != PAD_ID)).sum()
        return objective, nats_N.sum(dtype=torch.float64)

    @torch.no_grad()
    def token_nats(self, source_BS: Tensor, lengths_B: Tensor, input_BT: Tensor, target_BT: Tensor) -> Tensor:
        """Nats of each target, [B, T], zero at padding."""
        memory = self.encode(source_BS, lengths_B)
        decoding = self.decode(input_BT, memory, None)
        _, nats_N = self._cross_entropy(decoding, target_BT, memory, None, 0.0)
        return nats_N.view(target_BT.shape[1], -1).t()

    @torch.no_grad()
    def step(self, input_R: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
        """One token for each row, for decoding; R = B K rows, where the K rows of a source stand together.

        Returns:
            Logarithms of the next token's probabilities [R, V], copying included, and the state after this token.
        """
        decoding, state = self.decode_step(input_R, state, memory)
        features_RF = decoding.features.flatten(0, 1)
        logits_RV = nn.functional.linear(features_RF, self.output_weight, self.output_bias)
        log_probs_RV = torch.log_softmax(logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32)), dim=1)
        if self.copy_gate is not None and decoding.weights is not None:
            log_generate_R, log_copy_R = self.copy_gate(decoding.joint.flatten(0, 1))
            ids_RS = memory["ids"].repeat_interleave(decoding.weights.shape[1], dim=0)
            weights_RS = decoding.weights.reshape(ids_RS.shape)
            log_probs_RV = mixture_log_probs(log_probs_RV, log_generate_R, log_copy_R, weights_RS, ids_RS)
        return log_probs_RV, state

    def _cross_entropy(
        self,
        decoding: Decoding,
        target_BT: Tensor,
        memory: State,
        masks: MaskContext | None,
        label_smoothing: float,
        softmax_samples: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Objective, and the nats of all positions [N] with time outermost."""
        features_BTF = locked_dropout(decoding.features, self.dropout, masks, OUTPUT_SITE)
        copying = None
        if self.copy_gate is not None and decoding.weights is not None:
            log_generate_BT, log_copy_BT = self.copy_gate(decoding.joint)
            log_copy_BT = log_copy_BT + copy_log_mass(decoding.weights, memory["ids"], target_BT)
            copying = Copying(log_generate_BT.t().reshape(-1), log_copy_BT.t().reshape(-1))
        return cross_entropy(
            time_major(features_BTF),
            self.output_weight,
            self.output_bias,
            target_BT.t().reshape(-1),
            samples=softmax_samples,
            masks=masks,
            site=SAMPLE_SITE,
            copying=copying,
            label_smoothing=label_smoothing,
        )
