"""A recurrent language model.

Shapes: B batch (lanes), T time, E embedding size, H hidden size, X width of a layer, V vocabulary.
"""

import itertools

import torch
from torch import Tensor, nn

from rnnlm.models.config import CellKind
from rnnlm.models.language_model import INPUT_SITE, TYPE_SITE, LanguageModel
from rnnlm.models.stack import init_state, make_cell
from rnnlm.nn.cells import Cells, RecurrentCell
from rnnlm.nn.dropout import MaskContext, locked_dropout, matrix_mask
from rnnlm.nn.state import State

HIDDEN_SITE, RECURRENT_SITE = 16, 128
"""Where dropout acts: layer l has the sites HIDDEN_SITE + l, for its input, and RECURRENT_SITE + l, for its weights."""


class RecurrentLanguageModel(LanguageModel):
    """A stack of cells.

        x_t = E[token_t];  h^1_t = cell(x_t);  h^l_t = cell(h^{l-1}_t)

    With tied embeddings the last layer has E units. Dropout is locked, and recurrent weights can be dropped, as in Merity
    et al. (2017), https://arxiv.org/abs/1708.02182. With residual connections a layer adds to what it reads, where that is
    as wide as what it gives; with layer norm (Ba et al. 2016) what each layer and the output layer read is normalized first.

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
        softmax_cutoffs: token ids at which clusters of rarer tokens begin.
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
        last_size = embedding_size if tie_embeddings else hidden_size
        super().__init__(
            vocab_size=vocab_size,
            embedding_size=embedding_size,
            output_size=last_size,
            tie_embeddings=tie_embeddings,
            output_dropout=output_dropout,
            softmax_cutoffs=softmax_cutoffs,
        )
        self.embedding_dropout = embedding_dropout
        self.input_dropout = input_dropout
        self.hidden_dropout = hidden_dropout
        self.weight_drop = weight_drop
        self.residual = residual
        sizes = [embedding_size, *[hidden_size] * (num_layers - 1), last_size]
        self.cells = Cells(
            make_cell(cell, input_size=below, hidden_size=size) for below, size in itertools.pairwise(sizes)
        )
        # The input of each layer, and of the output layer.
        self.norms = nn.ModuleList(nn.LayerNorm(size) if layer_norm else nn.Identity() for size in sizes)

    @property
    def last_norm(self) -> nn.LayerNorm | None:
        """See `LanguageModel.last_norm`."""
        last = self.norms[-1]
        return last if isinstance(last, nn.LayerNorm) else None

    def init_state(self, batch_size: int) -> State:
        """The state before the first token: zeros."""
        return init_state(self.cells, batch_size)

    def hidden(self, input_BT: Tensor, state: State, masks: MaskContext | None) -> tuple[Tensor, State]:
        """See `LanguageModel.hidden`."""
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

    @torch.no_grad()
    def hidden_step(self, input_B: Tensor, state: State) -> tuple[Tensor, State]:
        """See `LanguageModel.hidden_step`."""
        x_BX = self.embedding(input_B)
        after = []
        for layer, cell in enumerate(self.cells):
            output_BX, cell_state = cell.step(self.norms[layer](x_BX), state.part(str(layer)))
            x_BX = self._joined(x_BX, output_BX)
            after.append(cell_state)
        return self.norms[-1](x_BX), State.join(after)

    def _joined(self, read_X: Tensor, given_X: Tensor) -> Tensor:
        """What a layer hands on."""
        return read_X + given_X if self.residual and read_X.shape == given_X.shape else given_X
