"""Strings to token ids and back, for three kinds of vocabulary behind one class."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rnnlm.errors import RnnlmError
from rnnlm.text.bpe import BpeCodec
from rnnlm.text.special import EOS, EOS_ID, PAD, PAD_ID, UNK, UNK_ID
from rnnlm.text.vocabulary import CharCodec, WordCodec

__all__ = ["EOS_ID", "PAD_ID", "UNK_ID", "Tokenizer"]


class _Codec(Protocol):
    @property
    def kind(self) -> str: ...
    @property
    def unk_id(self) -> int | None: ...

    vocab_size: int

    def to_json(self) -> str: ...
    def encode(self, texts: Sequence[str]) -> list[np.ndarray]: ...
    def encode_prompts(self, texts: Sequence[str]) -> list[np.ndarray]: ...
    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]: ...
    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]: ...
    def token(self, token_id: int) -> str: ...


class Tokenizer:
    """A vocabulary: `bpe` (byte-level, nothing is unknown), `word` (between blanks) or `char`.

    A literal `<pad>` or `<eos>` in a text is never taken for the special token. Can be sent to other processes.
    """

    pad_id = PAD_ID
    eos_id = EOS_ID

    def __init__(self, codec: _Codec) -> None:
        self._codec = codec
        self.kind = codec.kind
        self.vocab_size = codec.vocab_size
        self.unk_id = codec.unk_id

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Tokenizer.from_json, (self.to_json(),)

    @classmethod
    def train(cls, texts: Iterable[str], *, kind: str, vocab_size: int, min_frequency: int) -> "Tokenizer":
        """Learn a vocabulary; equal texts in equal order give equal bytes.

        Args:
            texts: what to learn from, read once.
            kind: `bpe`, `word` or `char`.
            vocab_size: most entries, special tokens included (not used by `char`). There are fewer where the texts have
                fewer words, or no more pairs to merge.
            min_frequency: words or merges that occur less often are left out (not used by `char`).
        """
        match kind:
            case "bpe":
                return cls(BpeCodec.train(texts, vocab_size=vocab_size, min_frequency=min_frequency))
            case "word":
                return cls(WordCodec.train(texts, vocab_size=vocab_size, min_frequency=min_frequency))
            case "char":
                return cls(CharCodec.train(texts))
            case _:
                raise ValueError(f"kind should be 'bpe', 'word' or 'char' (got {kind!r})")

    @classmethod
    def from_json(cls, serialized: str) -> "Tokenizer":
        """A tokenizer from what `to_json` gave.

        Raises:
            RnnlmError: it is something else.
        """
        try:
            return cls(_codec(serialized))
        except (ValueError, KeyError, TypeError) as error:
            raise RnnlmError(f"not a tokenizer of this project ({error})") from None

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """A tokenizer from its file.

        Raises:
            RnnlmError: the file is missing or holds something else.
        """
        try:
            return cls.from_json(Path(path).read_text("utf-8"))
        except (OSError, UnicodeDecodeError, RnnlmError) as error:
            raise RnnlmError(f"{path}: {error}") from None

    def to_json(self) -> str:
        """The vocabulary in the format of the `tokenizers` library."""
        return self._codec.to_json()

    def save(self, path: str | Path) -> None:
        """Write the vocabulary, usually as `tokenizer.json`."""
        Path(path).write_bytes(self.to_json().encode())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file that `save` writes."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def lossless(self) -> bool:
        """Whether every text comes back from its ids: neither `<unk>` nor lost blanks are possible."""
        return self.kind == "bpe"

    @property
    def keeps_blanks(self) -> bool:
        """Whether a text comes back from its ids where none of them is `<unk>`."""
        return self.kind != "word"

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of sources and targets, one int32 array a text, without `<eos>`."""
        return self._codec.encode(texts)

    def encode_prompts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of beginnings of documents: as `encode_documents`, without the `<eos>` of the document's end."""
        return self._codec.encode_prompts(texts)

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of whole documents for language models, one int32 array a text, each with `<eos>` at its end.

        In a word vocabulary each line ends in `<eos>`, whether or not the last newline is there.
        """
        return self._codec.encode_documents(texts)

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row of ids. Special tokens are dropped; `<eos>` between words becomes a newline."""
        return self._codec.decode(ids)

    def token(self, token_id: int) -> str:
        """One token to show to a person; special tokens by name."""
        return self._codec.token(token_id)


def _codec(serialized: str) -> _Codec:
    """Find the kind by the library's own names for the parts.

    Raises:
        ValueError, KeyError, TypeError: the JSON is not one of ours.
    """
    state = json.loads(serialized)
    vocabulary: dict[str, int] = state["model"]["vocab"]
    specials = (PAD, EOS) if state["model"]["type"] == "BPE" else (PAD, EOS, UNK)
    if [vocabulary.get(name) for name in specials] != list(range(len(specials))):
        raise ValueError(f"its first tokens should be {', '.join(specials)}")
    if state["added_tokens"]:
        raise ValueError("it has added tokens")
    match state["model"]["type"], state["pre_tokenizer"]["type"]:
        case "BPE", "ByteLevel":
            return BpeCodec(serialized)
        case "WordLevel", "WhitespaceSplit":
            return WordCodec(vocabulary)
        case "WordLevel", "Split":
            return CharCodec(vocabulary)
        case kinds:
            raise ValueError(f"unknown parts {kinds}")
