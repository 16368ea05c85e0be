"""A Transformer language model, to compare recurrent ones with.

Shapes: B batch (lanes), T tokens of a window, E width, C context.
"""

from functools import partial

import torch
from torch import Tensor, nn

from rnnlm.models.language_model import INPUT_SITE, LanguageModel
from rnnlm.nn.dropout import MaskContext, dropout
from rnnlm.nn.state import State
from rnnlm.nn.transformer import TransformerLayer, TransformerLayers, rotation, sliding_window, unseen_mask

LAYER_SITE = 16
"""The first place of dropout in the layers."""


class TransformerLanguageModel(LanguageModel):
    """Layers of attention to the last C tokens, which are carried from window to window as keys and values.

    So it is trained on the very contexts that it later sees when it generates, as in Transformer-XL (Dai et al. 2019,
    https://arxiv.org/abs/1901.02860), and stands beside a recurrent model in every place: the carried state of a lane is
    2 L (C - 1) vectors. Gradients end at the window's start.

    Args:
        vocab_size: V.
        width: E.
        num_layers: L.
        num_heads: of each attention.
        inner_width: of the feed-forward layers.
        context_length: C, tokens that a token sees, itself included; at least 2. No weight depends on it: set anew before
            `init_state`, as long as everything that will be read and written, it makes the cache a full one.
        tie_embeddings: whether the output layer uses the embedding's weights.
        dropout: share of activations dropped from the embedding, from what layers add and before the output layer.
        attention_dropout: share of keys that a head does not see.
        softmax_cutoffs: token ids at which clusters of rarer tokens begin.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        width: int,
        num_layers: int,
        num_heads: int,
        inner_width: int,
        context_length: int,
        tie_embeddings: bool,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        softmax_cutoffs: tuple[int, ...] = (),
    ) -> None:
        super().__init__(
            vocab_size=vocab_size,
            embedding_size=width,
            output_size=width,
            tie_embeddings=tie_embeddings,
            output_dropout=dropout,
            softmax_cutoffs=softmax_cutoffs,
        )
        self.context_length = context_length
        self.dropout = dropout
        self.head_size = width // num_heads
        make_layer = partial(
            TransformerLayer,
            width=width,
            num_heads=num_heads,
            inner_width=inner_width,
            has_source=False,
            share=dropout,
            key_share=attention_dropout,
        )
        self.layers = TransformerLayers(num_layers, LAYER_SITE, make_layer)
        self.norm = nn.LayerNorm(width)

    @property
    def last_norm(self) -> nn.LayerNorm:
        """See `LanguageModel.last_norm`."""
        return self.norm

    def init_state(self, batch_size: int) -> State:
        """The state before the first token: nothing is seen. `position` [B] counts the tokens read."""
        weight = self.embedding.weight
        zeros = weight.new_zeros(batch_size, self.context_length - 1, weight.shape[1])
        cache = State({"keys": zeros, "values": zeros})
        position_B = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)
        return State({"position": position_B, **State.join([cache] * len(self.layers))})

    def hidden(self, input_BT: Tensor, state: State, masks: MaskContext | None) -> tuple[Tensor, State]:
        """See `LanguageModel.hidden`."""
        position_B, length, kept = state["position"], input_BT.shape[1], self.context_length - 1
        turn = rotation(position_B, length, self.head_size)
        unseen = unseen_mask(sliding_window(position_B.clamp_max(kept), length, self.context_length))
        x_BTE = dropout(self.embedding(input_BT), self.dropout, masks, INPUT_SITE)
        after = []
        for number, layer in enumerate(self.layers):
            before = state.part(str(number))
            x_BTE, cache = layer(x_BTE, turn, unseen, cache=before, masks=masks)
            after.append(State({name: cache[name][:, -kept:].to(before[name].dtype) for name in cache}))
        return self.norm(x_BTE), State({"position": position_B + length, **State.join(after)})

    @torch.no_grad()
    def hidden_step(self, input_B: Tensor, state: State) -> tuple[Tensor, State]:
        """See `LanguageModel.hidden_step`."""
        x_B1E, state = self.hidden(input_B[:, None], state, None)
        return x_B1E[:, 0], state
