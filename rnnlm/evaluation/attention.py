"""Where a decoder looks while it reads or has written a target."""

import numpy as np
import torch
from numpy.typing import NDArray

from rnnlm.data.ragged import Ragged
from rnnlm.evaluation.perplexity import score_targets
from rnnlm.models.seq2seq import Seq2Seq


def attention_weights(
    model: Seq2Seq, source_ids: NDArray[np.int32], target_ids: NDArray[np.int32]
) -> NDArray[np.float64] | None:
    """The weights of each source token for each target token; None where the model has no attention.

    Args:
        model: in evaluation mode.
        source_ids: S tokens, without `<eos>`.
        target_ids: T tokens, without `<eos>`.

    Returns:
        Weights [T + 1, S + 1]: `<eos>` comes last on both sides.
    """
    if model.attention is None:
        return None
    caught: list[torch.Tensor] = []
    hook = model.attention.register_forward_hook(lambda _module, _inputs, outputs: caught.append(outputs[1]))
    try:
        score_targets(model, Ragged.from_rows([source_ids]), Ragged.from_rows([target_ids]))
    finally:
        hook.remove()
    return np.asarray(caught[0][0].detach().cpu().double().numpy())
