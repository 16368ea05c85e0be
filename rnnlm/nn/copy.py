"""Copying source tokens: a pointer-generator (See et al. 2017), in log space.

    p(y) = p_gen p_vocab(y) + (1 - p_gen) sum_{s: x_s = y} a_s

Source and target have one vocabulary. Training needs p at the target only, and so nothing as wide as the vocabulary
besides the softmax; decoding needs all of p.

Shapes: B batch, T target length, S source length, V vocabulary.
"""

import torch
from torch import Tensor, nn

FLOOR = 1e-30
"""Attention mass below this counts as this. Its logarithm and all gradients are then finite."""


def copy_log_mass(weights_BTS: Tensor, source_BS: Tensor, target_BT: Tensor) -> Tensor:
    """Logarithm of the attention that lies on source positions holding the target token, [B, T].

    The gradient is zero where no position holds it.
    """
    matches_BTS = source_BS[:, None] == target_BT[:, :, None]
    return (weights_BTS * matches_BTS).sum(-1).clamp_min(FLOOR).log()


class CopyGate(nn.Module):
    """p_gen = sigmoid(w^T x + b).

    Args:
        input_size: width of x.
    """

    def __init__(self, *, input_size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(input_size, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of p_gen and 1 - p_gen: of x [..., X] the shape [...], in fp32 or wider."""
        gate = self.gate(x)[..., 0]
        gate = gate if gate.dtype == torch.float64 else gate.float()
        return nn.functional.logsigmoid(gate), nn.functional.logsigmoid(-gate)


@torch.no_grad()
def mixture_log_probs(
    log_probs_BV: Tensor, log_generate_B: Tensor, log_copy_B: Tensor, weights_BS: Tensor, source_BS: Tensor
) -> Tensor:
    """The logarithm of p for the whole vocabulary, [B, V], without a gradient: it is for decoding.

    Args:
        log_probs_BV: log p_vocab.
        log_generate_B: log p_gen.
        log_copy_B: log (1 - p_gen).
        weights_BS: attention, zero at padding.
        source_BS: source token ids.
    """
    weights_BS = weights_BS.to(log_probs_BV.dtype)
    # A token that occurs often in a source gets its whole mass at every occurrence: equal values are then written.
    mass_BS = torch.zeros_like(log_probs_BV).scatter_add_(1, source_BS, weights_BS).gather(1, source_BS)
    mixed_BV = log_probs_BV + log_generate_B[:, None]
    copied_BS = log_copy_B[:, None] + mass_BS.clamp_min(FLOOR).log()
    return mixed_BV.scatter(1, source_BS, torch.logaddexp(mixed_BV.gather(1, source_BS), copied_BS))
