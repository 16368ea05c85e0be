"""Tokenization of large corpora by Ray Data: one task for each file of the corpus.

Where the shards of token files end must not depend on how Ray cuts blocks, so Ray Data maps over the *names* of corpus
files; each task reads its file itself, and the driver writes the results in the order of the files.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import ray.data

from rnnlm.data.corpus import CorpusFile
from rnnlm.data.ragged import Ragged
from rnnlm.data.tokenizing import TokenChunk, TokenCounts, TokenizeSettings, tokenize_file
from rnnlm.errors import RnnlmError
from rnnlm.storage import Store
from rnnlm.text.tokenizer import Tokenizer


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
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    items = [{"number": number, **asdict(file)} for number, file in enumerate(files)]
    shared = {"corpus": corpus, "split": split, "tokenizer": tokenizer, "settings": settings}
    tasks = ray.data.from_items(items, override_num_blocks=len(items))
    encoded = tasks.map(_encode_file, fn_kwargs=shared, num_cpus=1)
    return _in_order(encoded.iter_rows())


def _encode_file(
    item: dict[str, Any], corpus: Store, split: str, tokenizer: Tokenizer, settings: TokenizeSettings
) -> dict[str, Any]:
    """Runs in a task. Never raises, as Ray Data could be set to pass over what does."""
    number = int(item["number"])
    try:
        file = CorpusFile(str(item["name"]), int(item["units"]), int(item["text_bytes"]), str(item["sha256"]))
        chunk = tokenize_file(corpus, split, file, tokenizer, settings)
    except Exception as error:
        return {
            "number": number,
            "counts": "",
            "columns": [],
            "values": [],
            "offsets": [],
            "error": f"{type(error).__name__}: {error}",
        }
    return {
        "number": number,
        "counts": json.dumps(asdict(chunk.counts)),
        "columns": list(chunk.columns),
        "values": [column.values.tobytes() for column in chunk.columns.values()],
        "offsets": [column.offsets.tobytes() for column in chunk.columns.values()],
        "error": "",
    }


def _in_order(rows: Iterator[dict[str, Any]]) -> Iterator[TokenChunk]:
    """Chunks in the order of their numbers, however they arrive; those that are early are held."""
    early: dict[int, TokenChunk] = {}
    expected = 0
    for row in rows:
        if row["error"]:
            raise RnnlmError(f"tokenization in a Ray task failed: {row['error']}")
        early[int(row["number"])] = _chunk(row)
        while expected in early:
            yield early.pop(expected)
            expected += 1
    if early:
        raise RnnlmError(f"Ray Data lost file {expected} of the corpus")


def _chunk(row: dict[str, Any]) -> TokenChunk:
    parts = zip(row["columns"], row["values"], row["offsets"], strict=True)
    columns = {
        str(name): Ragged(np.frombuffer(values, np.int32), np.frombuffer(offsets, np.int64))
        for name, values, offsets in parts
    }
    return TokenChunk(columns, TokenCounts(**json.loads(row["counts"])))
