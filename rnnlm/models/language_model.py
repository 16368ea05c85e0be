"""A language model: what is common to recurrent ones and Transformers.

Shapes: B batch (lanes), T time, N real tokens, E embedding size, X width of what the output layer reads, V vocabulary.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from rnnlm.models.stack import time_major, zero_loss
from rnnlm.nn.dropout import MaskContext, locked_dropout
from rnnlm.nn.embedding import Embedding
from rnnlm.nn.sampled_softmax import cross_entropy
from rnnlm.nn.softmax import PAD_ID, Clusters, linear_cross_entropy, linear_log_softmax
from rnnlm.nn.state import State

TYPE_SITE, INPUT_SITE, OUTPUT_SITE, SAMPLE_SITE = 0, 1, 2, 3
"""Where dropout acts around the layers, and where the vocabulary is sampled."""


class LanguageModel(nn.Module):
    """Embedding, layers, and a softmax over the vocabulary: p(x_{t+1} | x_1, ..., x_t).

        y_t = W_hy h_t + b_y;  p = softmax(y_t)

    With tied embeddings W_hy is the embedding's table (Press and Wolf 2017).

    Args:
        vocab_size: V.
        embedding_size: E.
        output_size: X, E with tied embeddings.
        tie_embeddings: whether the output layer uses the embedding's weights.
        output_dropout: share of features dropped before the output layer, at all times alike.
        softmax_cutoffs: token ids at which clusters of rarer tokens begin, see `rnnlm.nn.softmax.Clusters`.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        embedding_size: int,
        output_size: int,
        tie_embeddings: bool,
        output_dropout: float,
        softmax_cutoffs: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.output_dropout = output_dropout
        self.embedding = Embedding(vocab_size=vocab_size, embedding_size=embedding_size)
        self.output_bias = nn.Parameter(torch.zeros(vocab_size))
        self.untied_weight = (
            None if tie_embeddings else nn.Parameter(torch.randn(vocab_size, output_size) * output_size**-0.5)
        )
        # A cutoff beyond the vocabulary begins no cluster.
        self.softmax_cutoffs = tuple(cutoff for cutoff in softmax_cutoffs if cutoff < vocab_size)
        if self.softmax_cutoffs:
            self.cluster_weight = nn.Parameter(torch.zeros(len(self.softmax_cutoffs), output_size))
            self.cluster_bias = nn.Parameter(torch.zeros(len(self.softmax_cutoffs)))

    @property
    def output_weight(self) -> Tensor:
        """W_hy, [V, X]."""
        return self.embedding.weight if self.untied_weight is None else self.untied_weight

    @property
    def clusters(self) -> Clusters | None:
        """Those of the output layer; None: it is one softmax over the vocabulary."""
        if not self.softmax_cutoffs:
            return None
        return Clusters(self.softmax_cutoffs, self.cluster_weight, self.cluster_bias)

    @property
    @abstractmethod
    def last_norm(self) -> nn.LayerNorm | None:
        """What normalizes the output layer's input; None: nothing does."""

    @torch.no_grad()
    def scale_logits(self, factor: float) -> None:
        """Multiply the logits, less their biases, by a factor, in the weights.

        Raises:
            ValueError: the output layer shares the embedding's table and no norm stands before it, so that no weight is
                the output's alone.
        """
        if self.last_norm is not None:
            scaled = list(self.last_norm.parameters())
        elif self.untied_weight is not None:
            scaled = [self.untied_weight, *([self.cluster_weight] if self.softmax_cutoffs else [])]
        else:
            raise ValueError("logits cannot be scaled: needs layer_norm = true or tie_embeddings = false")
        for weight in scaled:
            weight.mul_(factor)

    @abstractmethod
    def init_state(self, batch_size: int) -> State:
        """The state before the first token."""

    @abstractmethod
    def hidden(self, input_BT: Tensor, state: State, masks: MaskContext | None) -> tuple[Tensor, State]:
        """As `forward`, before the last dropout."""

    @abstractmethod
    def hidden_step(self, input_B: Tensor, state: State) -> tuple[Tensor, State]:
        """What `hidden` does with T = 1 and no masks: [B, X], and the state after the token."""

    def forward(self, input_BT: Tensor, state: State, masks: MaskContext | None = None) -> tuple[Tensor, State]:
        """Run over a window.

        Args:
            input_BT: token ids.
            state: of each lane, before the window.
            masks: what dropout depends on; without it there is none.

        Returns:
            What the output layer sees, [B, T, X], and the state after the window.
        """
        hidden_BTX, state = self.hidden(input_BT, state, masks)
        return locked_dropout(hidden_BTX, self.output_dropout, masks, OUTPUT_SITE), state

    def loss(
        self,
        input_BT: Tensor,
        target_BT: Tensor,
        state: State,
        *,
        masks: MaskContext | None = None,
        label_smoothing: float = 0.0,
        activation_reg: float = 0.0,
        temporal_activation_reg: float = 0.0,
        softmax_samples: int | None = None,
    ) -> tuple[Tensor, Tensor, State]:
        """Summed loss of a window.

        Args:
            input_BT: token ids.
            target_BT: the token that follows each; padding is not counted.
            state: of each lane, before the window.
            masks: what dropout depends on.
            label_smoothing: share of a target's probability that is spread over the vocabulary.
            activation_reg: alpha; what the output layer sees costs alpha times its mean square at each target.
            temporal_activation_reg: beta; so does its change from one target to the next, before dropout, times beta
                (both Merity et al. 2017, section 4.6).
            softmax_samples: tokens drawn from the vocabulary that targets are told from, see `rnnlm.nn.sampled_softmax`;
                for training, that is with masks. None: all.

        Raises:
            ValueError: samples of a vocabulary with clusters.

        Returns:
            The training objective with its gradient, the true nats (float64, of the targets alone, without gradient; with
            samples an estimate), and the state after the window.
        """
        if not input_BT.numel():
            return *zero_loss(self), state
        hidden_BTX, state = self.hidden(input_BT, state, masks)
        features_BTX = locked_dropout(hidden_BTX, self.output_dropout, masks, OUTPUT_SITE)
        objective, nats_N = cross_entropy(
            time_major(features_BTX),
            self.output_weight,
            self.output_bias,
            target_BT.t().reshape(-1),
            samples=softmax_samples,
            masks=masks,
            site=SAMPLE_SITE,
            clusters=self.clusters,
            label_smoothing=label_smoothing,
        )
        real_BT = target_BT != PAD_ID
        if activation_reg:
            objective = objective + activation_reg * _mean_squares(features_BTX, real_BT)
        if temporal_activation_reg:
            change_BTX = hidden_BTX[:, 1:] - hidden_BTX[:, :-1]
            objective = objective + temporal_activation_reg * _mean_squares(change_BTX, real_BT[:, 1:])
        return objective, nats_N.sum(dtype=torch.float64), state

    @torch.no_grad()
    def token_nats(self, input_BT: Tensor, target_BT: Tensor, state: State) -> tuple[Tensor, State]:
        """Nats of each target, [B, T], zero at padding, and the state after the window."""
        features_BTX, state = self(input_BT, state)
        target_N = target_BT.t().reshape(-1)
        _, nats_N = linear_cross_entropy(
            time_major(features_BTX), self.output_weight, self.output_bias, target_N, clusters=self.clusters
        )
        return nats_N.view(target_BT.shape[1], -1).t(), state

    @torch.no_grad()
    def step(self, input_B: Tensor, state: State) -> tuple[Tensor, State]:
        """One token for each row, for decoding.

        Returns:
            Logits [B, V] of the next token (with clusters log p, which serves as well), and the state after this one.
        """
        x_BX, state = self.hidden_step(input_B, state)
        return linear_log_softmax(x_BX, self.output_weight, self.output_bias, self.clusters), state


def _mean_squares(x_BTX: Tensor, real_BT: Tensor) -> Tensor:
    """The mean square of the features, summed over the real positions."""
    return (x_BTX.float().square().mean(-1) * real_BT).sum()
