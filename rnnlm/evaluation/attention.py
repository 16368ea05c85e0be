"""Where a decoder looks while it writes an output."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from rnnlm.data.ragged import Ragged
from rnnlm.decoding.generator import Generator
from rnnlm.errors import UsageError
from rnnlm.evaluation.perplexity import score_targets
from rnnlm.models.seq2seq import Seq2Seq
from rnnlm.text.normalize import normalize


def attention_weights(
    generator: Generator, source: str, output: str
) -> tuple[NDArray[np.float64], list[str], list[str]]:
    """The weights of each source token for each output token, `<eos>` last on both sides.

    Args:
        generator: a translator or summarizer.
        source: a text as it is given to the generator.
        output: what it made of it, or any other target.

    Returns:
        Weights [T, S], the S source tokens, and the T output tokens.

    Raises:
        UsageError: the model has no attention.
    """
    model = generator.model
    if not isinstance(model, Seq2Seq) or model.attention is None:
        raise UsageError("the model has no attention to show")
    source_ids, output_ids = _encoded(generator, source), _encoded(generator, output)
    caught: list[torch.Tensor] = []
    hook = model.attention.register_forward_hook(lambda _module, _inputs, outputs: caught.append(outputs[1]))
    try:
        score_targets(model, Ragged.from_rows([source_ids]), Ragged.from_rows([output_ids]))
    finally:
        hook.remove()
    # With input feeding the attention is called once for each output token.
    weights_TS = np.asarray(torch.cat(caught, dim=1)[0].detach().cpu().double().numpy())
    return weights_TS, _labels(generator, source_ids), _labels(generator, output_ids)


def _encoded(generator: Generator, text: str) -> NDArray[np.int32]:
    (ids,) = generator.tokenizer.encode([normalize(text, **generator.normalize.model_dump())])
    return ids


def _labels(generator: Generator, ids: Sequence[int] | NDArray[np.int32]) -> list[str]:
    tokenizer = generator.tokenizer
    return [tokenizer.token(int(token)) for token in (*ids, tokenizer.eos_id)]
