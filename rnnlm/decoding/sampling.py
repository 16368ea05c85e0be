"""Greedy decoding and sampling, one token a step for every unfinished row of a batch.

A row's random numbers are a function of (seed, key of the row, step), so that its draw does not depend on the rows that
happen to be decoded with it. Shapes: B rows, A rows that are still in the batch, V vocabulary, T steps.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rnnlm.decoding.decoder import Decoded, Decoder, Start, banned, staying
from rnnlm.decoding.next_token import NextToken, ban
from rnnlm.decoding.processors import candidates

Choose = Callable[[NextToken, list[int], Tensor, int], tuple[Tensor, Tensor]]
"""From distributions, ids that are banned, the rows [A] and the step to tokens [A] and their log-probabilities [A]."""

_GOLDEN = 0x9E3779B97F4A7C15


class StepTokens(NamedTuple):
    """What one step made."""

    rows_A: Tensor
    """Places in the batch of the rows that were not finished."""
    tokens_A: Tensor
    log_probs_A: Tensor


def row_key(identity: str) -> int:
    """64 bits that stand for a row in the hash behind its draws; equal identities draw equal numbers."""
    digest = hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def uniforms(seed: int, keys: np.ndarray, step: int) -> np.ndarray:
    """A number in [0, 1) for each key (uint64), a pure function of seed, key and step: splitmix64 (Steele et al., 2014)."""
    mixed_seed = _mix(np.array([seed & (2**64 - 1)], np.uint64) + np.uint64(_GOLDEN))
    hashed = _mix(_mix(keys ^ mixed_seed) + np.array([(step + 1) * _GOLDEN & (2**64 - 1)], np.uint64))
    return np.asarray((hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _mix(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))


def draw(weights_BC: Tensor, uniforms_B: Tensor) -> Tensor:
    """Index of a candidate of each row, drawn in proportion to its weight by inverting the cumulative sum."""
    cumulative_BC = weights_BC.cumsum(1)
    total_B1 = cumulative_BC[:, -1:].contiguous()
    index = torch.searchsorted(cumulative_BC, uniforms_B[:, None] * total_B1, right=True)
    # Rounding may carry the product up to the total: the last candidate with any weight is the greatest answer.
    return torch.minimum(index, torch.searchsorted(cumulative_BC, total_B1))[:, 0]


def most_probable(next_token: NextToken, banned_ids: list[int], rows_A: Tensor, step: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """The greedy choice; among equals the lower token id."""
    best = next_token.best(torch.zeros(len(rows_A), 1, dtype=torch.float64, device=rows_A.device), 1, banned_ids)
    return best.tokens_AC[:, 0], best.log_probs_AC[:, 0]


def random_choice(
    *, seed: int, keys: Sequence[int], temperature: float, top_k: int | None, top_p: float | None
) -> Choose:
    """A choice by chance; `keys` has the key of each row of the batch."""
    keys_B = np.array([key & (2**64 - 1) for key in keys], np.uint64)

    def choose(next_token: NextToken, banned_ids: list[int], rows_A: Tensor, step: int) -> tuple[Tensor, Tensor]:
        log_probs_AV = ban(next_token.log_probs(), banned_ids)
        weights_AC, tokens_AC = candidates(log_probs_AV, temperature=temperature, top_k=top_k, top_p=top_p)
        numbers = torch.from_numpy(uniforms(seed, keys_B[rows_A.cpu().numpy()], step)).to(weights_AC.device)
        index_A = draw(weights_AC, numbers)
        ids_A1 = index_A[:, None] if tokens_AC is None else tokens_AC.gather(1, index_A[:, None])
        return ids_A1[:, 0], log_probs_AV.gather(1, ids_A1)[:, 0]

    return choose


@torch.inference_mode()
def steps(decoder: Decoder, start: Start, choose: Choose, *, max_length: int, min_length: int) -> Iterator[StepTokens]:
    """Make one token a step for each row, until every row has made `<eos>` or `max_length` tokens.

    Finished rows leave the batch, soon after. Nothing is kept from step to step but the model's state.
    """
    ids_A, state, memory = start
    rows_A = torch.arange(ids_A.shape[0], device=ids_A.device)
    on_A = torch.ones_like(rows_A, dtype=torch.bool)
    count = len(rows_A)
    for step in range(max_length):
        next_token, state = decoder.step(ids_A, state, memory)
        ids_A, log_probs_A = choose(next_token, banned(decoder, step, min_length), rows_A, step)
        made = StepTokens(rows_A, ids_A, log_probs_A)
        yield made if count == len(rows_A) else StepTokens(*(each[on_A] for each in made))
        on_A &= ids_A != decoder.eos_id
        count = int(on_A.count_nonzero())
        if not count:
            return
        if (places := staying(on_A, count)) is not None:
            rows_A, ids_A, on_A, state = rows_A[places], ids_A[places], on_A[places], state.select(places)
            memory = memory if memory is None else memory.select(places)


@torch.inference_mode()
def decode_steps(decoder: Decoder, start: Start, choose: Choose, *, max_length: int, min_length: int) -> Decoded:
    """All steps at once, as one sequence a row."""
    batch_size = start.ids_B.shape[0]
    log_probs_B = start.ids_B.new_zeros(batch_size, dtype=torch.float64)
    columns = []
    for rows_A, tokens_A, step_A in steps(decoder, start, choose, max_length=max_length, min_length=min_length):
        column_B = torch.full_like(start.ids_B, decoder.eos_id)
        column_B[rows_A] = tokens_A
        log_probs_B[rows_A] += step_A.double()
        columns.append(column_B)
    tokens_BT = torch.stack(columns, 1).cpu().numpy()
    ends_BT = tokens_BT == decoder.eos_id
    ended = ends_BT.any(1)
    lengths = np.where(ended, ends_BT.argmax(1), tokens_BT.shape[1])
    tokens = [row[:length] for row, length in zip(tokens_BT, lengths, strict=True)]
    return Decoded(tokens, log_probs_B.tolist(), ended.tolist())


def greedy(decoder: Decoder, start: Start, *, max_length: int, min_length: int = 0) -> Decoded:
    """The most probable token at each step; the same as a beam of one."""
    return decode_steps(decoder, start, most_probable, max_length=max_length, min_length=min_length)


def sample(
    decoder: Decoder,
    start: Start,
    *,
    seed: int,
    keys: Sequence[int],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    max_length: int,
    min_length: int = 0,
) -> Decoded:
    """A token by chance at each step. Log-probabilities in the result are the model's own, before temperature and cuts."""
    choose = random_choice(seed=seed, keys=keys, temperature=temperature, top_k=top_k, top_p=top_p)
    return decode_steps(decoder, start, choose, max_length=max_length, min_length=min_length)
