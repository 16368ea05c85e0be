"""Tokenization of large corpora by Ray: one task for each file of the corpus.

Each task reads its file itself, and the driver writes the results in the order of the files, so that where the shards of
token files end depends on nothing else. Only a few files are under way at a time: what waits to be written lies in
Ray's object store, which would otherwise fill with the whole corpus.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray

from rnnlm.data.corpus import CorpusFile
from rnnlm.data.ragged import Ragged
from rnnlm.data.tokenizing import TokenChunk, TokenizeSettings, tokenize_file
from rnnlm.errors import RnnlmError
from rnnlm.storage import Store
from rnnlm.text.tokenizer import Tokenizer

_FILES_PER_CPU = 2
"""So many files are under way for each CPU: one that is encoded, and one that waits to be."""


def tokenize_with_ray(
    corpus: Store, split: str, files: Sequence[CorpusFile], tokenizer: Tokenizer, settings: TokenizeSettings
) -> Iterator[TokenChunk]:
    """The token ids of the files of a split, in the order of the files; Ray has to be running.

    Args:
        corpus: has to be reachable from every node.
        split: name of the split.
        files: its files.
        tokenizer: the vocabulary.
        settings: of `tokenize_file`, which does the work.

    Raises:
        RnnlmError: a task failed; the message is its own.
    """
    shared = ray.put((corpus, split, tokenizer, settings))
    encode = ray.remote(num_cpus=1)(_encode_file)
    at_once = max(2, _FILES_PER_CPU * int(ray.cluster_resources().get("CPU", 1)))
    left = deque(files)
    running: deque[Any] = deque()
    while left or running:
        while left and len(running) < at_once:
            running.append(encode.remote(shared, left.popleft()))
        yield _finished(running.popleft())


def _encode_file(shared: tuple[Store, str, Tokenizer, TokenizeSettings], file: CorpusFile) -> TokenChunk:
    """Runs in a task."""
    corpus, split, tokenizer, settings = shared
    return tokenize_file(corpus, split, file, tokenizer, settings)


def _finished(task: Any) -> TokenChunk:
    """What a task gave, in this process's own memory: the object store may forget it."""
    try:
        chunk: TokenChunk = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise RnnlmError(f"tokenization in a Ray task failed: {type(error.cause).__name__}: {error.cause}") from None
    except ray.exceptions.RayError as error:
        raise RnnlmError(f"tokenization in a Ray task failed: {error}") from None
    columns = {name: Ragged(np.array(one.values), np.array(one.offsets)) for name, one in chunk.columns.items()}
    return TokenChunk(columns, chunk.counts)
