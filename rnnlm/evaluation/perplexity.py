"""How well a model predicts a text: nats, perplexity, bits per byte.

Every document is read from its beginning to its end with the state carried along, and its `<eos>` is scored. How many
documents are read side by side, and in windows of what length, changes speed and memory but no figure.

    perplexity = exp(nats / tokens)        bits per byte = nats / (ln 2 * bytes)

Perplexity compares models of one vocabulary only; bits per byte compare all, where the tokens stand for the very bytes
that were ingested.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rnnlm.data.lm_batches import stream_windows
from rnnlm.data.ragged import Ragged
from rnnlm.data.seq2seq_batches import evaluation_batches
from rnnlm.models.language_model import LanguageModel
from rnnlm.models.seq2seq import Seq2Seq
from rnnlm.text.tokenizer import Tokenizer

Done = Callable[[int, int], None]
"""Called with the tokens scored so far and the tokens in all."""

_MAX_WINDOW = 1_024
_USUAL_WINDOW = 256
_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True)
class Perplexity:
    """How well a set of tokens was predicted."""

    nats: float
    """Negative log-likelihood of all tokens."""
    num_tokens: int
    num_bytes: int
    """UTF-8 bytes as ingested, one newline a line included."""
    perplexity: float
    bits_per_byte: float | None
    reason: str | None
    """Why bits per byte are not given."""


def perplexity(nats: float, num_tokens: int, num_bytes: int, reason: str | None = None) -> Perplexity:
    """The figures of summed nats.

    Args:
        nats: of all tokens together.
        num_tokens: `<eos>` counted.
        num_bytes: of the same text as ingested.
        reason: why its tokens do not stand for those bytes; None where they do.
    """
    mean = nats / max(1, num_tokens)
    value = math.exp(mean) if mean < _LARGEST_EXPONENT else math.inf
    if reason is None and num_bytes <= 0:
        reason = "the text has no bytes"
    bits = None if reason else nats / (math.log(2) * num_bytes)
    return Perplexity(nats, num_tokens, num_bytes, value, bits, reason)


def bytes_reason(tokenizer: Tokenizer, tokens: Ragged, *, lossless_normalization: bool) -> str | None:
    """Why the tokens of a text do not stand for its bytes as ingested; None where they do."""
    reasons = []
    if not lossless_normalization:
        reasons.append("normalization changes the text")
    if not tokenizer.keeps_blanks:
        reasons.append(f"the {tokenizer.kind} vocabulary does not keep blanks")
    if tokenizer.unk_id is not None:
        unknown = int(np.count_nonzero(np.asarray(tokens.values) == tokenizer.unk_id))
        if unknown:
            reasons.append(f"{unknown} of {tokens.num_tokens} tokens are <unk>")
    return "; ".join(reasons) or None


def score_documents(
    model: LanguageModel, tokens: Ragged, *, batch_tokens: int = 8_192, done: Done | None = None
) -> NDArray[np.float64]:
    """Nats of each document.

    Args:
        model: in evaluation mode.
        tokens: the documents, each ending in `<eos>`.
        batch_tokens: positions scored together.
        done: told about progress.
    """
    nats = np.zeros(len(tokens))
    num_rows, window = _layout(tokens, batch_tokens)
    device = next(model.parameters()).device
    state = model.init_state(0)
    scored = 0
    for part in stream_windows(tokens, window, num_rows):
        count = len(part.rows)
        if part.reset:
            state = model.init_state(count)
        elif count < state.num_rows:
            state = state.select(torch.arange(count, device=device))
        input_BT, target_BT = (torch.from_numpy(x).to(device) for x in (part.input_BT, part.target_BT))
        nats_BT, state = model.token_nats(input_BT, target_BT, state)
        nats[part.rows] += nats_BT.sum(1, dtype=torch.float64).cpu().numpy()
        scored += part.num_tokens
        if done is not None:
            done(scored, tokens.num_tokens)
    return nats


def _layout(tokens: Ragged, batch_tokens: int) -> tuple[int, int]:
    """Documents side by side, and tokens of a window: few long windows for few documents, else many documents."""
    mean_length = tokens.num_tokens // max(1, len(tokens))
    num_rows = max(1, min(len(tokens), batch_tokens // max(16, min(_USUAL_WINDOW, mean_length))))
    return num_rows, max(1, min(_MAX_WINDOW, batch_tokens // num_rows))


def score_targets(
    model: Seq2Seq, source: Ragged, target: Ragged, *, batch_tokens: int = 8_192, done: Done | None = None
) -> NDArray[np.float64]:
    """Nats of each target given its source, every token after the true ones before it (teacher forcing).

    Args:
        model: in evaluation mode.
        source: the sources, without `<eos>`.
        target: the targets, as many, without `<eos>`, which is scored too.
        batch_tokens: source and target positions scored together.
        done: told about progress.
    """
    nats = np.zeros(len(target))
    device = next(model.parameters()).device
    total = target.num_tokens + len(target)
    scored = 0
    for batch in evaluation_batches(source, target, batch_tokens):
        arrays = (batch.source_BS, batch.source_lengths_B, batch.target_in_BT, batch.target_out_BT)
        nats_BT = model.token_nats(*(torch.from_numpy(array).to(device) for array in arrays))
        nats[batch.rows] = nats_BT.sum(1, dtype=torch.float64).cpu().numpy()
        scored += batch.num_tokens
        if done is not None:
            done(scored, total)
    return nats
