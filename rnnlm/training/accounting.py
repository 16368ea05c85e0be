"""What a training costs: parameters, arithmetic, and the share of a machine's peak that is reached."""

from torch import nn

from rnnlm.models.language_model import LanguageModel
from rnnlm.models.seq2seq import Seq2Seq
from rnnlm.nn.embedding import Embedding


def matmul_weights(model: LanguageModel | Seq2Seq) -> int:
    """Weights that are multiplied with something for each token.

    Rows of an embedding are only looked up; as a tied output layer the table counts once. Of a model for pairs, encoder
    and decoder are added, as if sources were as long as targets. Of an output layer with clusters only the first step
    counts, as the second is taken for few tokens.
    """
    apart = {id(module.weight) for module in model.modules() if isinstance(module, Embedding)} | {
        id(model.output_weight)
    }
    layers = sum(weight.numel() for weight in model.parameters() if weight.ndim >= 2 and id(weight) not in apart)
    rows, width = model.output_weight.shape
    if isinstance(model, LanguageModel) and model.clusters:
        rows = model.clusters.cutoffs[0]
    return layers + rows * width


def training_flops_per_token(model: LanguageModel | Seq2Seq) -> int:
    """Floating-point operations of a training step for one target token: 2 forward and 4 backward for each weight.

    Attention's own products and everything elementwise are left out (Kaplan et al., 2020, section 2.1,
    https://arxiv.org/abs/2001.08361).
    """
    return 6 * matmul_weights(model)


def utilisation(flops_per_token: float, tokens_per_second: float, peak_flops_per_second: float) -> float:
    """Share of the machine's peak that goes into the arithmetic of the model."""
    return flops_per_token * tokens_per_second / peak_flops_per_second


def training_bytes(model: nn.Module, *, moments: int = 2, averages: int = 0) -> int:
    """Memory of weights, gradients, the optimizer's moments and averaged weights; activations apart.

    Args:
        model: its parameters count.
        moments: values that the optimizer keeps for each weight; 2 for Adam, 0 for plain gradient descent.
        averages: averaged copies of the weights.
    """
    return sum(weight.numel() * weight.element_size() for weight in model.parameters()) * (2 + moments + averages)
