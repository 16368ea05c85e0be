"""From a configuration to a module: a closed union, told apart by its kind."""

from torch import nn

from rnnlm.models.config import LanguageModelConfig, ModelConfig, Seq2SeqConfig
from rnnlm.models.language_model import LanguageModel
from rnnlm.models.seq2seq import Seq2Seq
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
            return LanguageModel(vocab_size=vocab_size, **settings)
        case Seq2SeqConfig():
            return Seq2Seq(vocab_size=vocab_size, **settings)


def num_parameters(model: nn.Module) -> dict[str, int]:
    """Numbers of trained values: `total`, and `without_embeddings` (tables of word vectors and untied output weights)."""
    total = sum(parameter.numel() for parameter in model.parameters())
    tables = sum(module.weight.numel() for module in model.modules() if isinstance(module, Embedding))
    untied = getattr(model, "untied_weight", None)
    outputs = 0 if untied is None else untied.numel()
    return {"total": total, "without_embeddings": total - tables - outputs}
