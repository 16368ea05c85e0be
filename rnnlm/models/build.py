"""From a configuration to a module: a closed union, told apart by its kind."""

from collections.abc import Collection
from typing import Literal

from torch import nn

from rnnlm.models.config import LanguageModelConfig, ModelConfig, Seq2SeqConfig, TransformerConfig
from rnnlm.models.language_model import LanguageModel
from rnnlm.models.recurrent_lm import RecurrentLanguageModel
from rnnlm.models.recurrent_seq2seq import RecurrentSeq2Seq
from rnnlm.models.seq2seq import Seq2Seq
from rnnlm.models.transformer_lm import TransformerLanguageModel
from rnnlm.models.transformer_seq2seq import TransformerSeq2Seq
from rnnlm.nn.embedding import Embedding


def build_model(config: ModelConfig, vocab_size: int) -> LanguageModel | Seq2Seq:
    """A model with fresh weights, drawn from torch's global generator.

    Args:
        config: architecture and sizes.
        vocab_size: V, special tokens included.
    """
    settings = config.model_dump(exclude={"kind"})
    match config:
        case LanguageModelConfig():
            return RecurrentLanguageModel(vocab_size=vocab_size, **settings)
        case Seq2SeqConfig():
            return RecurrentSeq2Seq(vocab_size=vocab_size, **settings)
        case TransformerConfig(encoder_layers=0):
            for name in ("encoder_layers", "copy_source", "share_embeddings"):
                del settings[name]
            return TransformerLanguageModel(vocab_size=vocab_size, **settings)
        case TransformerConfig():
            for name in ("context_length", "softmax_cutoffs"):
                del settings[name]
            return TransformerSeq2Seq(vocab_size=vocab_size, **settings)


def num_parameters(model: nn.Module) -> dict[str, int]:
    """Numbers of trained values: `total`, and `without_embeddings` (tables of word vectors and untied output weights)."""
    total = sum(parameter.numel() for parameter in model.parameters())
    tables = sum(module.weight.numel() for module in model.modules() if isinstance(module, Embedding))
    untied = getattr(model, "untied_weight", None)
    outputs = 0 if untied is None else untied.numel()
    return {"total": total, "without_embeddings": total - tables - outputs}


OUTPUT_NAMES = frozenset({"output_bias", "untied_weight", "cluster_weight", "cluster_bias"})


def part_of(name: str) -> Literal["embedding", "encoder", "decoder", "output"]:
    """The part of a model that a parameter belongs to; a language model's layers are its decoder."""
    if "embedding" in name:
        return "embedding"
    if name.startswith("encoder"):
        return "encoder"
    return "output" if name in OUTPUT_NAMES else "decoder"


def freeze(model: nn.Module, parts: Collection[str]) -> None:
    """Keep the parameters of some parts as they are, see `part_of`."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) not in parts)
