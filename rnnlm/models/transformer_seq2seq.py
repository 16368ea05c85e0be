"""A Transformer encoder and decoder, to compare recurrent ones with.

Shapes: B batch, S source length, T target length, E width, V vocabulary, K rows (beams) of one source.
"""

from functools import partial

import torch
from torch import Tensor, nn

from rnnlm.models.seq2seq import SOURCE_SITE, TARGET_SITE, Decoding, Seq2Seq
from rnnlm.nn.attention import DotAttention
from rnnlm.nn.copy import CopyGate
from rnnlm.nn.dropout import MaskContext, dropout
from rnnlm.nn.state import State
from rnnlm.nn.transformer import TransformerLayer, TransformerLayers, rotation, unseen_mask

ENCODER_SITE, DECODER_SITE = 1_000, 2_000
"""The first place of dropout in either stack."""


class TransformerSeq2Seq(Seq2Seq):
    """Encoder and decoder of layers that normalize what they read, with rotary positions (Vaswani et al. 2017, modernized).

    With `copy_source` one more attention, of the decoder's output to the encoder's, says what is copied.

    Args:
        vocab_size: V, of source and target.
        width: E.
        num_layers: layers of the decoder.
        encoder_layers: layers of the encoder.
        num_heads: of each attention.
        inner_width: of the feed-forward layers.
        copy_source: whether source tokens can be copied.
        share_embeddings: one table for source and target.
        tie_embeddings: the output layer uses the target's table.
        dropout: share of activations dropped from embeddings, from what layers add and before the output layer.
        attention_dropout: share of keys that a head does not see.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        width: int,
        num_layers: int,
        encoder_layers: int,
        num_heads: int,
        inner_width: int,
        copy_source: bool,
        share_embeddings: bool,
        tie_embeddings: bool,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            vocab_size=vocab_size,
            embedding_size=width,
            share_embeddings=share_embeddings,
            tie_embeddings=tie_embeddings,
            dropout=dropout,
        )
        self.head_size = width // num_heads

        make_layer = partial(
            TransformerLayer,
            width=width,
            num_heads=num_heads,
            inner_width=inner_width,
            share=dropout,
            key_share=attention_dropout,
        )
        self.encoder_layers = TransformerLayers(encoder_layers, ENCODER_SITE, partial(make_layer, has_source=False))
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder_layers = TransformerLayers(num_layers, DECODER_SITE, partial(make_layer, has_source=True))
        self.decoder_norm = nn.LayerNorm(width)
        self.attention = DotAttention(query_size=width, memory_size=width) if copy_source else None
        self.copy_gate = CopyGate(input_size=2 * width) if copy_source else None

    def encode(self, source_BS: Tensor, lengths_B: Tensor, masks: MaskContext | None = None) -> State:
        """See `Seq2Seq.encode`: `real` [B, S], and keys and values of each layer of the decoder, [B, S, E]."""
        length = source_BS.shape[1]
        real_BS = torch.arange(length, device=source_BS.device) < lengths_B[:, None]
        unseen_B11S = unseen_mask(real_BS[:, None, None])
        turn = rotation(lengths_B.new_zeros(1), length, self.head_size)
        x_BSE = dropout(self.source_embedding(source_BS), self.dropout, masks, SOURCE_SITE)
        for layer in self.encoder_layers:
            x_BSE, _ = layer(x_BSE, turn, unseen_B11S, masks=masks)
        x_BSE = self.encoder_norm(x_BSE)
        prepared = State.join([layer.prepare(x_BSE) for layer in self.decoder_layers])
        parts = {"real": real_BS, **prepared}
        if self.attention is not None:
            parts |= {"ids": source_BS, **self.attention.prepare(x_BSE, lengths_B)}
        return State(parts)

    def init_state(self, memory: State) -> State:
        """See `Seq2Seq.init_state`: keys and values of no tokens, [B, 0, E]; they grow by one with each token."""
        empty = memory["0.keys"][:, :0]
        return State.join([State({"keys": empty, "values": empty})] * len(self.decoder_layers))

    def decode(self, input_BT: Tensor, memory: State, masks: MaskContext | None) -> Decoding:
        """See `Seq2Seq.decode`."""
        length = input_BT.shape[1]
        turn = rotation(input_BT.new_zeros(1), length, self.head_size)
        causal_11TT = unseen_mask(
            torch.ones(length, length, dtype=torch.bool, device=input_BT.device).tril()[None, None]
        )
        unseen_B11S = unseen_mask(memory["real"][:, None, None])
        x_BTE = dropout(self.target_embedding(input_BT), self.dropout, masks, TARGET_SITE)
        for number, layer in enumerate(self.decoder_layers):
            source = memory.part(str(number))
            x_BTE, _ = layer(x_BTE, turn, causal_11TT, source=source, source_unseen=unseen_B11S, masks=masks)
        return self._copying(self.decoder_norm(x_BTE), memory)

    def decode_step(self, input_R: Tensor, state: State, memory: State) -> tuple[Decoding, State]:
        """See `Seq2Seq.decode_step`. The K rows of a source ask it together."""
        sources, rows = memory.num_rows, input_R.shape[0]
        turn = rotation(input_R.new_full((1,), state["0.keys"].shape[1]), 1, self.head_size)
        unseen_B11S = unseen_mask(memory["real"][:, None, None])
        x_R1E = self.target_embedding(input_R[:, None])
        after = []
        for number, layer in enumerate(self.decoder_layers):
            place = str(number)
            source, cache = memory.part(place), state.part(place)
            x_R1E, cache = layer(x_R1E, turn, None, cache=cache, source=source, source_unseen=unseen_B11S)
            after.append(cache)
        features_BKE = self.decoder_norm(x_R1E).view(sources, rows // sources, -1)
        return self._copying(features_BKE, memory), State.join(after)

    def _copying(self, features_BTE: Tensor, memory: State) -> Decoding:
        if self.attention is None:
            return Decoding(features_BTE, features_BTE, None)
        context_BTE, weights_BTS = self.attention(features_BTE, memory)
        return Decoding(features_BTE, torch.cat([features_BTE, context_BTE], dim=-1), weights_BTS)
