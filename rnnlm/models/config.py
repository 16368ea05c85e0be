"""Architecture and sizes of a model: a closed union on `kind`."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from rnnlm.config import Config


def _rising(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if list(numbers) != sorted(set(numbers)):
        raise ValueError("should rise")
    return numbers


CellKind = Literal["elman", "gru", "lstm", "mingru", "minlstm", "qrnn"]
Share = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int, Field(ge=1, le=65_536)]
Cutoffs = Annotated[tuple[Size, ...], AfterValidator(_rising)]
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
    softmax_cutoffs: Cutoffs = ()
    """Token ids at which clusters of rarer tokens begin: these are predicted in two steps, which is cheaper where the
    vocabulary is large (adaptive softmax). None: one softmax. Ids of word and BPE tokenizers rise as tokens get rarer."""

    @property
    def depth(self) -> int:
        """Layers in all."""
        return self.num_layers

    @property
    def widest(self) -> int:
        """Units of the widest layers."""
        return self.hidden_size


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
    output_size: Size | None = None
    """Units that the output layer reads; `none`: `embedding_size`, as many as a table has that it shares."""
    input_feeding: bool = False
    """The decoder reads its last output vector too; training then goes step by step and takes several times as long."""
    coverage: bool = False
    """Attention reads how much it has attended to each position so far. As this makes a step depend on the one before, it
    needs `input_feeding`, with which training goes step by step anyway. `train.coverage_reg` works without it."""
    dropout: Share = 0.2
    """On embeddings, between layers and before the output."""

    @model_validator(mode="after")
    def _steps(self) -> Self:
        if self.coverage and (self.attention == "none" or not self.input_feeding):
            raise ValueError("coverage: needs attention and input_feeding = true")
        return self

    @model_validator(mode="after")
    def _tied(self) -> Self:
        if self.tie_embeddings and self.output_size not in (None, self.embedding_size):
            raise ValueError(
                f"output_size: should be none or embedding_size, {self.embedding_size}, with tie_embeddings = true "
                f"(got {self.output_size})"
            )
        return self

    @property
    def depth(self) -> int:
        """Layers in all."""
        return self.encoder_layers + self.decoder_layers

    @property
    def widest(self) -> int:
        """Units of the widest layers."""
        return self.hidden_size


class TransformerConfig(Config):
    """A Transformer, to compare recurrent models with: layers normalize what they read, positions are rotary."""

    kind: Literal["transformer"] = "transformer"
    width: Size = 256
    """Of embeddings and layers; a multiple of `2 * num_heads`."""
    num_heads: Layers = 4
    inner_width: Size = 1_024
    """Of the feed-forward layers."""
    num_layers: Layers = 4
    """Of the decoder; of a language model, all."""
    encoder_layers: int = Field(0, ge=0, le=64)
    """0 for a language model; pairs need an encoder."""
    context_length: int = Field(256, ge=2, le=65_536)
    """Text: tokens that a token sees, itself included."""
    copy_source: bool = False
    """Pairs: the output mixes the vocabulary with the attended source tokens."""
    share_embeddings: bool = True
    """Pairs: source and target use one embedding."""
    tie_embeddings: bool = True
    """The output layer shares the (target) embedding's weights."""
    dropout: Share = 0.1
    """On embeddings, on what layers add and before the output."""
    attention_dropout: Share = 0.0
    """Share of keys that a head of an attention does not see in a step."""
    softmax_cutoffs: Cutoffs = ()
    """Text: see `LanguageModelConfig.softmax_cutoffs`."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % (2 * self.num_heads):
            raise ValueError(f"width: should be a multiple of 2 * num_heads (got {self.width} and {self.num_heads})")
        return self

    @property
    def depth(self) -> int:
        """Layers in all."""
        return self.encoder_layers + self.num_layers

    @property
    def widest(self) -> int:
        """Units of the widest layers."""
        return self.inner_width


ModelConfig = Annotated[LanguageModelConfig | Seq2SeqConfig | TransformerConfig, Field(discriminator="kind")]
