"""The table of word vectors."""

import math

import torch
from torch import Tensor, nn

from rnnlm.nn.dropout import MaskContext, type_mask


class Embedding(nn.Module):
    """Token ids to vectors: the rows of a table, times sqrt(E).

    The entries start with a standard deviation of 1/sqrt(E). As the weights of an output layer (tied) that gives logits
    near zero; times sqrt(E) it gives inputs of unit variance, which a recurrent layer learns from at once.

    Shapes: B batch, T time, V vocabulary, E embedding size.

    Args:
        vocab_size: V.
        embedding_size: E.
    """

    def __init__(self, *, vocab_size: int, embedding_size: int) -> None:
        super().__init__()
        self.scale = math.sqrt(embedding_size)
        self.weight = nn.Parameter(torch.randn(vocab_size, embedding_size) / self.scale)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Vectors [B, T, E], time outermost in memory; for ids [B], vectors [B, E]."""
        vectors: Tensor = nn.functional.embedding(ids_BT.t(), self.weight) * self.scale
        return vectors if ids_BT.dim() == 1 else vectors.transpose(0, 1)

    def dropped(self, ids_BT: Tensor, share: float, masks: MaskContext | None, site: int) -> Tensor:
        """As `forward`, with all occurrences of a share of the vocabulary replaced by zeros for this step.

        Source: embedding dropout of Gal and Ghahramani (2016), as in AWD-LSTM (Merity et al. 2017).
        """
        x_BTE: Tensor = self(ids_BT)
        if masks is None or not share:
            return x_BTE
        mask_V = type_mask(self.weight.shape[0], share, masks, site, ids_BT.device)
        return x_BTE * mask_V.to(x_BTE.dtype)[ids_BT][..., None]
