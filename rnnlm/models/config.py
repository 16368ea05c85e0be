"""Architecture and sizes of a model: a closed union on `kind`."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from rnnlm.config import Config

CellKind = Literal["elman", "gru", "lstm", "mingru", "minlstm", "qrnn"]
Share = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int, Field(ge=1, le=65_536)]
Layers = Annotated[int, Field(ge=1, le=64)]


class LanguageModelConfig(Config):
    """A recurrent language model: embedding, layers, output over the vocabulary."""

    kind: Literal["language_model"] = "language_model"
    cell: CellKind = "lstm"
    embedding_size: Size = 256
    hidden_size: Size = 512
    num_layers: Layers = 2
    tie_embeddings: bool = True
    """The output layer shares the embedding's weights; the last layer then has `embedding_size` units."""
    embedding_dropout: Share = 0.0
    """Share of the vocabulary whose embedding is dropped in a window."""
    input_dropout: Share = 0.2
    """Locked dropout between the embedding and the first layer."""
    hidden_dropout: Share = 0.2
    """Locked dropout between layers."""
    output_dropout: Share = 0.2
    """Locked dropout before the output layer."""
    weight_drop: Share = 0.0
    """Share of the recurrent weights dropped in a window; the cells mingru, minlstm and qrnn have none."""
    residual: bool = False
    """Layers add to what they read, where both are equally wide."""
    layer_norm: bool = False
    """What layers, the output layer included, read is normalized."""
    softmax_cutoffs: tuple[Size, ...] = ()
    """Token ids at which clusters of rarer tokens begin: these are predicted in two steps, which is cheaper where the
    vocabulary is large (adaptive softmax). None: one softmax. Ids of word and BPE tokenizers rise as tokens get rarer."""

    @field_validator("softmax_cutoffs")
    @classmethod
    def _rise(cls, cutoffs: tuple[int, ...]) -> tuple[int, ...]:
        if list(cutoffs) != sorted(set(cutoffs)):
            raise ValueError("has to rise")
        return cutoffs


class Seq2SeqConfig(Config):
    """Bidirectional encoder, and a decoder whose first layer queries attention for the layers above it."""

    kind: Literal["seq2seq"] = "seq2seq"
    cell: CellKind = "lstm"
    embedding_size: Size = 256
    hidden_size: Size = 256
    """Units of each decoder layer; each direction of the encoder has half as many, rounded up."""
    encoder_layers: Layers = 1
    decoder_layers: Layers = 2
    attention: Literal["none", "additive", "dot"] = "dot"
    copy_source: bool = True
    """Pointer-generator: the output mixes the vocabulary with the attended source tokens. Needs attention."""
    share_embeddings: bool = True
    """Source and target use one embedding."""
    tie_embeddings: bool = True
    """The output layer shares the target embedding's weights."""
    dropout: Share = 0.2
    """On embeddings, between layers and before the output."""


ModelConfig = Annotated[LanguageModelConfig | Seq2SeqConfig, Field(discriminator="kind")]
