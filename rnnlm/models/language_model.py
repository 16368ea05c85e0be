"""A recurrent language model.

Shapes: B batch (lanes), T time, N real tokens, E embedding size, H hidden size, V vocabulary.
"""

import itertools

import torch
from torch import Tensor, nn

from rnnlm.models.config import CellKind
from rnnlm.models.stack import init_state, make_cell, time_major, zero_loss
from rnnlm.nn.cells import Cells, RecurrentCell
from rnnlm.nn.dropout import MaskContext, locked_dropout, matrix_mask
from rnnlm.nn.embedding import Embedding
from rnnlm.nn.softmax import PAD_ID, Clusters, linear_cross_entropy, linear_log_softmax
from rnnlm.nn.state import State

TYPE_SITE, INPUT_SITE, OUTPUT_SITE, HIDDEN_SITE, RECURRENT_SITE = 0, 1, 2, 16, 128
"""Where dropout acts; layer l has the sites HIDDEN_SITE + l, for its input, and RECURRENT_SITE + l, for its weights."""


class LanguageModel(nn.Module):
    """Embedding, a stack of cells, and a softmax over the vocabulary: p(x_{t+1} | x_1, ..., x_t).

        x_t = E[token_t];  h^1_t = cell(x_t);  h^l_t = cell(h^{l-1}_t);  y_t = W_hy h^L_t + b_y;  p = softmax(y_t)

    With tied embeddings W_hy is E (Press and Wolf 2017) and the last layer has E units. Dropout is locked, and recurrent
    weights can be dropped, as in Merity et al. (2017), https://arxiv.org/abs/1708.02182. With residual connections a layer
    adds to what it reads, where that is as wide as what it gives; with layer norm (Ba et al. 2016) what each layer and the
    output layer read is normalized first.

    Args:
        vocab_size: V.
        cell: kind of the cells.
        embedding_size: E.
        hidden_size: H, of every layer but, with tied embeddings, the last.
        num_layers: cells in the stack.
        tie_embeddings: whether the output layer uses the embedding's weights.
        embedding_dropout: share of word types dropped in a window.
        input_dropout: share of features dropped between embedding and first layer.
        hidden_dropout: the same between layers.
        output_dropout: the same before the output layer.
        weight_drop: share of the recurrent weights of each layer that is dropped in a window, for all lanes alike.
        residual: whether layers add to what they read.
        layer_norm: whether what layers read is normalized.
        softmax_cutoffs: token ids at which clusters of rarer tokens begin, see `rnnlm.nn.softmax.Clusters`.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        cell: CellKind,
        embedding_size: int,
        hidden_size: int,
        num_layers: int,
        tie_embeddings: bool,
        embedding_dropout: float = 0.0,
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        output_dropout: float = 0.0,
        weight_drop: float = 0.0,
        residual: bool = False,
        layer_norm: bool = False,
        softmax_cutoffs: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.embedding_dropout = embedding_dropout
        self.input_dropout = input_dropout
        self.hidden_dropout = hidden_dropout
        self.output_dropout = output_dropout
        self.weight_drop = weight_drop
        self.residual = residual
        self.embedding = Embedding(vocab_size=vocab_size, embedding_size=embedding_size)
        last_size = embedding_size if tie_embeddings else hidden_size
        sizes = [embedding_size, *[hidden_size] * (num_layers - 1), last_size]
        self.cells = Cells(
            make_cell(cell, input_size=below, hidden_size=size) for below, size in itertools.pairwise(sizes)
        )
        # The input of each layer, and of the output layer.
        self.norms = nn.ModuleList(nn.LayerNorm(size) if layer_norm else nn.Identity() for size in sizes)
        self.output_bias = nn.Parameter(torch.zeros(vocab_size))
        self.untied_weight = (
            None if tie_embeddings else nn.Parameter(torch.randn(vocab_size, last_size) * last_size**-0.5)
        )
        # A cutoff beyond the vocabulary begins no cluster.
        self.softmax_cutoffs = tuple(cutoff for cutoff in softmax_cutoffs if cutoff < vocab_size)
        if self.softmax_cutoffs:
            self.cluster_weight = nn.Parameter(torch.zeros(len(self.softmax_cutoffs), last_size))
            self.cluster_bias = nn.Parameter(torch.zeros(len(self.softmax_cutoffs)))

    @property
    def output_weight(self) -> Tensor:
        """W_hy, [V, E] or [V, H]."""
        return self.embedding.weight if self.untied_weight is None else self.untied_weight

    @property
    def clusters(self) -> Clusters | None:
        """Those of the output layer; None: it is one softmax over the vocabulary."""
        if not self.softmax_cutoffs:
            return None
        return Clusters(self.softmax_cutoffs, self.cluster_weight, self.cluster_bias)

    def init_state(self, batch_size: int) -> State:
        """The state before the first token: zeros."""
        return init_state(self.cells, batch_size)

    def forward(self, input_BT: Tensor, state: State, masks: MaskContext | None = None) -> tuple[Tensor, State]:
        """Run over a window.

        Args:
            input_BT: token ids.
            state: of each lane, before the window.
            masks: what dropout depends on; without it there is none.

        Returns:
            What the output layer sees, [B, T, E or H], and the state after the window.
        """
        hidden_BTE, state = self._hidden(input_BT, state, masks)
        return locked_dropout(hidden_BTE, self.output_dropout, masks, OUTPUT_SITE), state

    def _hidden(self, input_BT: Tensor, state: State, masks: MaskContext | None) -> tuple[Tensor, State]:
        """As `forward`, before the last dropout."""
        x_BTX = self.embedding.dropped(input_BT, self.embedding_dropout, masks, TYPE_SITE)
        x_BTX = locked_dropout(x_BTX, self.input_dropout, masks, INPUT_SITE)
        after = []
        for layer, cell in enumerate(self.cells):
            if layer:
                x_BTX = locked_dropout(x_BTX, self.hidden_dropout, masks, HIDDEN_SITE + layer)
            options = {}
            if isinstance(cell, RecurrentCell) and self.weight_drop and masks is not None:
                options["recurrent_mask_GH"] = matrix_mask(
                    cell.weight_hh, self.weight_drop, masks, RECURRENT_SITE + layer
                )
            output_BTX, cell_state = cell.sequence(self.norms[layer](x_BTX), state.part(str(layer)), **options)
            x_BTX = self._joined(x_BTX, output_BTX)
            after.append(cell_state)
        return self.norms[-1](x_BTX), State.join(after)

    def _joined(self, read_X: Tensor, given_X: Tensor) -> Tensor:
        """What a layer hands on."""
        return read_X + given_X if self.residual and read_X.shape == given_X.shape else given_X

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

        Returns:
            The training objective with its gradient, the true nats (float64, of the targets alone, without gradient),
            and the state after the window.
        """
        if not input_BT.numel():
            return *zero_loss(self), state
        hidden_BTE, state = self._hidden(input_BT, state, masks)
        features_BTE = locked_dropout(hidden_BTE, self.output_dropout, masks, OUTPUT_SITE)
        objective, nats_N = linear_cross_entropy(
            time_major(features_BTE),
            self.output_weight,
            self.output_bias,
            target_BT.t().reshape(-1),
            clusters=self.clusters,
            label_smoothing=label_smoothing,
        )
        real_BT = target_BT != PAD_ID
        if activation_reg:
            objective = objective + activation_reg * _mean_squares(features_BTE, real_BT)
        if temporal_activation_reg:
            change_BTE = hidden_BTE[:, 1:] - hidden_BTE[:, :-1]
            objective = objective + temporal_activation_reg * _mean_squares(change_BTE, real_BT[:, 1:])
        return objective, nats_N.sum(dtype=torch.float64), state

    @torch.no_grad()
    def token_nats(self, input_BT: Tensor, target_BT: Tensor, state: State) -> tuple[Tensor, State]:
        """Nats of each target, [B, T], zero at padding, and the state after the window."""
        features_BTE, state = self(input_BT, state)
        target_N = target_BT.t().reshape(-1)
        _, nats_N = linear_cross_entropy(
            time_major(features_BTE), self.output_weight, self.output_bias, target_N, clusters=self.clusters
        )
        return nats_N.view(target_BT.shape[1], -1).t(), state

    @torch.no_grad()
    def step(self, input_B: Tensor, state: State) -> tuple[Tensor, State]:
        """One token for each row, for decoding.

        Returns:
            Logits [B, V] of the next token (with clusters log p, which serves as well), and the state after this one.
        """
        x_BX = self.embedding(input_B)
        after = []
        for layer, cell in enumerate(self.cells):
            output_BX, cell_state = cell.step(self.norms[layer](x_BX), state.part(str(layer)))
            x_BX = self._joined(x_BX, output_BX)
            after.append(cell_state)
        logits_BV = linear_log_softmax(self.norms[-1](x_BX), self.output_weight, self.output_bias, self.clusters)
        return logits_BV, State.join(after)


def _mean_squares(x_BTE: Tensor, real_BT: Tensor) -> Tensor:
    """The mean square of the features, summed over the real positions."""
    return (x_BTE.float().square().mean(-1) * real_BT).sum()
