"""Beam search over a batch, vectorised over rows and beams.

A hypothesis is scored log p(y) / |y|^alpha, |y| counting `<eos>` and alpha being the length penalty (Jean et al., 2015).
Each step extends every open hypothesis of a row by every token and keeps the K best extensions; those that end in
`<eos>` are complete, and at the greatest length L all of them are. A row is done when

- no hypothesis is open, or K are complete (with K = 1 this is greedy decoding), or
- no open hypothesis can still win: log-probabilities only fall, so that its score stays below log p / L^alpha. This bound
  is exact and never changes the result.

With K >= V^(L-1) nothing is ever pruned that could win: the result is that of exhaustive search over all sequences that
end in `<eos>` or have L tokens.

Shapes: B rows of the batch, A rows that are still in it, K beams, N = A x K, C extensions of a row, V vocabulary, T steps.
"""

import torch
from torch import Tensor
from torch.nn import functional

from rnnlm.decoding.decoder import Decoded, Decoder, Start, banned, staying
from rnnlm.decoding.next_token import Extensions


class _Best:
    """The best sequence of each row so far: its score, and the place in the trace where it ends."""

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self.score_B = torch.full((batch_size,), -torch.inf, dtype=torch.float64, device=device)
        self.log_prob_B = torch.zeros_like(self.score_B)
        self.step_B = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.slot_B = torch.zeros_like(self.step_B)
        self.ended_B = torch.zeros_like(self.step_B, dtype=torch.bool)

    def offer(self, rows_A: Tensor, log_probs_AK: Tensor, ends_AK: Tensor, step: int, length_penalty: float) -> None:
        """Consider sequences of length `step + 1`; among equals the one that was there first stays."""
        log_prob_A, slot_A = log_probs_AK.max(1)
        score_A = log_prob_A / (step + 1) ** length_penalty
        better = score_A > self.score_B[rows_A]
        rows = rows_A[better]
        self.score_B[rows], self.log_prob_B[rows] = score_A[better], log_prob_A[better]
        self.step_B[rows], self.slot_B[rows] = step, slot_A[better]
        self.ended_B[rows] = ends_AK[better].gather(1, slot_A[better, None])[:, 0]


@torch.inference_mode()
def beam_search(
    decoder: Decoder,
    start: Start,
    *,
    beam_size: int,
    length_penalty: float = 1.0,
    max_length: int,
    min_length: int = 0,
) -> Decoded:
    """The best sequence that a beam of `beam_size` finds for each row."""
    ids_N, state, memory = start
    batch_size, device = ids_N.shape[0], ids_N.device
    rows_A = torch.arange(batch_size, device=device)
    num_ended_A = torch.zeros_like(rows_A)
    open_AK = torch.zeros(batch_size, 1, dtype=torch.float64, device=device)
    best = _Best(batch_size, device)
    trace: list[tuple[Tensor, Extensions]] = []
    for step in range(max_length):
        next_token, state = decoder.step(ids_N, state, memory)
        # Log-probabilities add up in float64, which keeps the order of a hypothesis' extensions that of the tokens.
        found = next_token.best(
            open_AK, min(beam_size, open_AK.shape[1] * decoder.vocab_size), banned(decoder, step, min_length)
        )
        kept = _padded(found, beam_size)
        trace.append((rows_A, kept))
        ends_AK = (kept.tokens_AC == decoder.eos_id) & kept.log_probs_AC.isfinite()
        complete_AK = ends_AK if step + 1 < max_length else torch.ones_like(ends_AK)
        best.offer(rows_A, kept.log_probs_AC.masked_fill(~complete_AK, -torch.inf), ends_AK, step, length_penalty)
        num_ended_A = num_ended_A + ends_AK.sum(1)
        width = open_AK.shape[1]
        open_AK = kept.log_probs_AC.masked_fill(complete_AK, -torch.inf)
        bound_A = open_AK.amax(1) / max_length**length_penalty
        on_A = (num_ended_A < beam_size) & (bound_A > best.score_B[rows_A])
        count = int(on_A.count_nonzero())
        if not count:
            break
        open_AK = open_AK.masked_fill(~on_A[:, None], -torch.inf)  # nothing more comes of a row that is done
        places, parents_AK, tokens_AK = staying(on_A, count), kept.parents_AC, kept.tokens_AC
        if places is None:
            places = torch.arange(len(rows_A), device=device)
        else:
            rows_A, num_ended_A, open_AK = rows_A[places], num_ended_A[places], open_AK[places]
            parents_AK, tokens_AK = parents_AK[places], tokens_AK[places]
            memory = memory if memory is None else memory.select(places)
        state = state.select((places[:, None] * width + parents_AK).flatten())
        ids_N = tokens_AK.flatten()
    return _trace_back(best, trace)


def _padded(found: Extensions, beam_size: int) -> Extensions:
    """As many for each row as the beam has, the last of them with log-probability -inf where there are fewer."""
    missing = (0, beam_size - found.tokens_AC.shape[1])
    return Extensions(
        functional.pad(found.log_probs_AC, missing, value=-torch.inf),
        functional.pad(found.parents_AC, missing),
        functional.pad(found.tokens_AC, missing),
    )


def _trace_back(best: _Best, trace: list[tuple[Tensor, Extensions]]) -> Decoded:
    """Follow each row's best sequence from its end to its start."""
    tokens_BT = best.step_B.new_zeros(len(best.step_B), len(trace))
    slot_B = best.slot_B
    for step in range(len(trace) - 1, -1, -1):
        rows_A, kept = trace[step]
        inside = step <= best.step_B[rows_A]
        rows, slots_A1 = rows_A[inside], slot_B[rows_A[inside], None]
        tokens_BT[rows, step] = kept.tokens_AC[inside].gather(1, slots_A1)[:, 0]
        slot_B[rows] = kept.parents_AC[inside].gather(1, slots_A1)[:, 0]
    ended = best.ended_B.tolist()
    lengths = (best.step_B + 1 - best.ended_B.long()).tolist()
    tokens = [row[:length] for row, length in zip(tokens_BT.cpu().numpy(), lengths, strict=True)]
    return Decoded(tokens, best.log_prob_B.tolist(), ended)
