"""What can be had without a model: figures that a trained one must beat to be worth anything.

Everything here is learned from the train split alone, except what is labelled an oracle, which looks at the references
and shows how far a whole class of methods could get.
"""

import lzma
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rnnlm.data.ragged import Joined, count_ids
from rnnlm.evaluation.dictionary import learn_dictionary
from rnnlm.evaluation.rouge import rouge_l_f1, rouge_words
from rnnlm.evaluation.sentences import units

Role = Literal["trivial", "reference", "oracle"]
Scorer = Callable[[Sequence[str]], dict[str, float]]
"""The figures of one text for each row."""

_XZ_MIN_WINDOW, _XZ_MAX_WINDOW = 1 << 12, 1 << 26


@dataclass(frozen=True)
class Baseline:
    """The figures of one baseline."""

    name: str
    role: Role
    """`trivial`: the first version of a model must beat it; `reference`: to compare with; `oracle`: saw the answers."""
    about: str
    """What it does, for people."""
    figures: dict[str, float]


def text_baselines(
    *,
    test_ids: NDArray[np.int32] | Joined,
    train_ids: NDArray[np.int32] | Joined | None,
    vocab_size: int,
    num_bytes: int | None,
    test_texts: Sequence[str],
    train_texts: Iterable[str] | None,
) -> list[Baseline]:
    """Baselines of a language model, over the same tokens and bytes as its own figures.

    Args:
        test_ids: every scored token.
        train_ids: the tokens that the unigram model counts; None leaves it out.
        vocab_size: entries of the vocabulary.
        num_bytes: bytes of the scored text; None where bits per byte mean nothing.
        test_texts: the scored documents.
        train_texts: the training documents for `xz_after_train`; None leaves it out.
    """
    found = []
    if train_ids is not None:
        nats = unigram_nats(train_ids, test_ids, vocab_size)
        figures = {"perplexity": math.exp(nats / max(1, len(test_ids)))}
        if num_bytes:
            figures["bits_per_byte"] = nats / (math.log(2) * num_bytes)
        about = "each token by its share of the training tokens, one added to every count"
        found.append(Baseline("unigram", "trivial", about, figures))
    if num_bytes:
        found.extend(_xz_baselines(_joined(test_texts), train_texts))
    return found


def unigram_nats(train_ids: NDArray[np.int32] | Joined, test_ids: NDArray[np.int32] | Joined, vocab_size: int) -> float:
    """Nats of the test tokens under the train tokens' frequencies with one added to each count (Laplace)."""
    log_probability = np.log(count_ids(train_ids, vocab_size) + 1.0) - math.log(len(train_ids) + vocab_size)
    return float(-(count_ids(test_ids, vocab_size) * log_probability).sum())


def xz_size(data: bytes) -> int:
    """Bytes of `xz -9`. Its 64 MiB window is cut to the data, which saves memory and changes no match."""
    window = min(_XZ_MAX_WINDOW, len(data) + _XZ_MIN_WINDOW)
    filters: list[dict[str, Any]] = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": window}]
    return len(lzma.compress(data, format=lzma.FORMAT_XZ, filters=filters))


def _xz_baselines(test: bytes, train_texts: Iterable[str] | None, max_train_bytes: int = 1 << 25) -> list[Baseline]:
    if not test:
        return []
    alone = 8.0 * xz_size(test) / len(test)
    found = [Baseline("xz", "reference", "`xz -9` of the text alone", {"bits_per_byte": alone})]
    if train_texts is not None:
        whole = _joined(train_texts)
        train = whole[-max_train_bytes:]
        after = 8.0 * (xz_size(train + test) - xz_size(train)) / len(test)
        which = "the training text" if len(train) == len(whole) else f"the last {len(train)} bytes of the training text"
        found.append(Baseline("xz_after_train", "reference", f"`xz -9` after {which}", {"bits_per_byte": after}))
    return found


def _joined(texts: Iterable[str]) -> bytes:
    return b"".join(text.encode() + b"\n" for text in texts)


def translation_baselines(
    sources: Sequence[str], score: Scorer, train_pairs: Iterable[tuple[str, str]] | None
) -> list[Baseline]:
    """The copied source, and the best word-for-word dictionary that the train split yields (None leaves it out)."""
    found = [Baseline("copied_source", "trivial", "the source as it stands", score(list(sources)))]
    if train_pairs is not None:
        dictionary = learn_dictionary(train_pairs)
        about = f"each word by its most probable translation ({len(dictionary.entries)} entries, IBM Model 1)"
        outputs = [dictionary.translate(source) for source in sources]
        found.append(Baseline("token_dictionary", "trivial", about, score(outputs)))
    return found


def summary_baselines(sources: Sequence[str], references: Sequence[str], score: Scorer) -> list[Baseline]:
    """Lead-1, Lead-3, Longest-3 and the best single sentence of each source, in sentences or in utterances."""
    parts = [units(source) for source in sources]
    best = [best_sentence(sentences, reference) for sentences, reference in zip(parts, references, strict=True)]
    return [
        Baseline("lead_1", "trivial", "the first sentence or utterance", score([lead(some, 1) for some in parts])),
        Baseline("lead_3", "trivial", "the first three", score([lead(some, 3) for some in parts])),
        Baseline("longest_3", "trivial", "the three longest, in order", score([longest(some, 3) for some in parts])),
        Baseline("oracle_sentence", "oracle", "the one with the best ROUGE-L, chosen by the reference", score(best)),
    ]


def lead(sentences: Sequence[str], count: int) -> str:
    """The first so many sentences, one a line."""
    return "\n".join(sentences[:count])


def longest(sentences: Sequence[str], count: int) -> str:
    """The so many longest sentences, in their own order, one a line; of equal ones the earlier."""
    by_length = sorted(range(len(sentences)), key=lambda index: -len(sentences[index]))
    return "\n".join(sentences[index] for index in sorted(by_length[:count]))


def best_sentence(sentences: Sequence[str], reference: str) -> str:
    """The sentence with the highest ROUGE-L against the reference; of equal ones the first."""
    words = rouge_words(reference)
    return max(sentences, key=lambda sentence: rouge_l_f1(rouge_words(sentence), words), default="")
