"""A recurrent language model.

Shapes: B batch (lanes), T time, N real tokens, E embedding size, H hidden size, V vocabulary.
"""

import itertools

import torch
from torch import Tensor, nn

from rnnlm.models.stack import CellKind, init_state, make_cell, time_major, zero_loss
from rnnlm.nn.cells import Cells
from rnnlm.nn.dropout import MaskContext, locked_dropout
from rnnlm.nn.embedding import Embedding
from rnnlm.nn.softmax import linear_cross_entropy
from rnnlm.nn.state import State

TYPE_SITE, INPUT_SITE, OUTPUT_SITE, HIDDEN_SITE = 0, 1, 2, 16
"""Where dropout acts; hidden layer l has the site HIDDEN_SITE + l."""


class LanguageModel(nn.Module):
    """Embedding, a stack of cells, and a softmax over the vocabulary: p(x_{t+1} | x_1, ..., x_t).

        x_t = E[token_t];  h^1_t = cell(x_t);  h^l_t = cell(h^{l-1}_t);  y_t = W_hy h^L_t + b_y;  p = softmax(y_t)

    With tied embeddings W_hy is E (Press and Wolf 2017) and the last layer has E units. Dropout is locked, as in
    Merity et al. (2017).

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
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.embedding_dropout = embedding_dropout
        self.input_dropout = input_dropout
        self.hidden_dropout = hidden_dropout
        self.output_dropout = output_dropout
        self.embedding = Embedding(vocab_size=vocab_size, embedding_size=embedding_size)
        last_size = embedding_size if tie_embeddings else hidden_size
        sizes = [embedding_size, *[hidden_size] * (num_layers - 1), last_size]
        self.cells = Cells(
            make_cell(cell, input_size=below, hidden_size=size) for below, size in itertools.pairwise(sizes)
        )
        self.output_bias = nn.Parameter(torch.zeros(vocab_size))
        self.untied_weight = (
            None if tie_embeddings else nn.Parameter(torch.randn(vocab_size, last_size) * last_size**-0.5)
        )

    @property
    def output_weight(self) -> Tensor:
        """W_hy, [V, E] or [V, H]."""
        return self.embedding.weight if self.untied_weight is None else self.untied_weight

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
        x_BTX = self.embedding.dropped(input_BT, self.embedding_dropout, masks, TYPE_SITE)
        x_BTX = locked_dropout(x_BTX, self.input_dropout, masks, INPUT_SITE)
        after = []
        for layer, cell in enumerate(self.cells):
            if layer:
                x_BTX = locked_dropout(x_BTX, self.hidden_dropout, masks, HIDDEN_SITE + layer)
            x_BTX, cell_state = cell.sequence(x_BTX, state.part(str(layer)))
            after.append(cell_state)
        return locked_dropout(x_BTX, self.output_dropout, masks, OUTPUT_SITE), State.join(after)

    def loss(
        self,
        input_BT: Tensor,
        target_BT: Tensor,
        state: State,
        *,
        masks: MaskContext | None = None,
        label_smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor, State]:
        """Summed loss of a window.

        Args:
            input_BT: token ids.
            target_BT: the token that follows each; padding is not counted.
            state: of each lane, before the window.
            masks: what dropout depends on.
            label_smoothing: share of a target's probability that is spread over the vocabulary.

        Returns:
            The training objective with its gradient, the true nats (float64, without smoothing and gradient), and the
            state after the window.
        """
        if not input_BT.numel():
            return *zero_loss(self), state
        features_BTE, state = self(input_BT, state, masks)
        objective, nats_N = linear_cross_entropy(
            time_major(features_BTE),
            self.output_weight,
            self.output_bias,
            target_BT.t().reshape(-1),
            label_smoothing=label_smoothing,
        )
        return objective, nats_N.sum(dtype=torch.float64), state

    @torch.no_grad()
    def token_nats(self, input_BT: Tensor, target_BT: Tensor, state: State) -> tuple[Tensor, State]:
        """Nats of each target, [B, T], zero at padding, and the state after the window."""
        features_BTE, state = self(input_BT, state)
        target_N = target_BT.t().reshape(-1)
        _, nats_N = linear_cross_entropy(time_major(features_BTE), self.output_weight, self.output_bias, target_N)
        return nats_N.view(target_BT.shape[1], -1).t(), state

    @torch.no_grad()
    def step(self, input_B: Tensor, state: State) -> tuple[Tensor, State]:
        """One token for each row, for decoding.

        Returns:
            Logits [B, V] of the next token, and the state after this one.
        """
        x_BX = self.embedding(input_B)
        after = []
        for layer, cell in enumerate(self.cells):
            x_BX, cell_state = cell.step(x_BX, state.part(str(layer)))
            after.append(cell_state)
        return nn.functional.linear(x_BX, self.output_weight, self.output_bias), State.join(after)
