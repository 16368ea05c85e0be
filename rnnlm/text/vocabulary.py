"""Closed vocabularies: words between blanks, or characters. What is not in them becomes `<unk>`.

Both are written as a word-level tokenizer of the `tokenizers` library, which reads them; looking words up is done here,
because that library takes a hundred times as long for it.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from rnnlm.text.special import EOS, EOS_ID, PAD, PAD_ID, UNK, UNK_ID

_SPECIALS = (PAD, EOS, UNK)
_AROUND_NEWLINE = re.compile(r" ?\n ?")


class _Lookup(dict[str, int]):
    """Ids by word."""

    def __missing__(self, word: str) -> int:
        return UNK_ID


class WordCodec:
    """Words between blanks. A line ends in `<eos>`, and `<unk>` in a text is the unknown word itself, as in the PTB.

    Args:
        vocabulary: ids by word, special tokens included.
    """

    kind = "word"
    unk_id: int | None = UNK_ID

    def __init__(self, vocabulary: Mapping[str, int]) -> None:
        self.vocab_size = len(vocabulary)
        self._words = sorted(vocabulary, key=vocabulary.__getitem__)
        self._lookup = _Lookup({word: number for word, number in vocabulary.items() if number > UNK_ID})

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int, min_frequency: int) -> "WordCodec":
        """Take the most frequent words; of equally frequent ones the alphabetically first."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text.split())
        for name in _SPECIALS:
            counts.pop(name, None)
        frequent = [word for word, count in counts.items() if count >= min_frequency]
        frequent.sort(key=lambda word: (-counts[word], word))
        return cls(_numbered(frequent[: max(0, vocab_size - len(_SPECIALS))]))

    def to_json(self) -> str:
        """The vocabulary as JSON of the `tokenizers` library."""
        library = tokenizers.Tokenizer(models.WordLevel(_numbered(self._words[len(_SPECIALS) :]), unk_token=UNK))
        library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return _compact(library)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, int32, newlines taken as blanks, without `<eos>`."""
        return [self._ids(text.split()) for text in texts]

    def encode_prompts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of beginnings of documents, int32: each newline is an `<eos>`, the end of the text is none."""
        return [self._document(text)[:-1] for text in texts]

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, int32, with `<eos>` at the end of each line; the last newline may be missing."""
        return [self._document(text.removesuffix("\n")) for text in texts]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The words of each row joined by spaces. `<eos>` becomes a newline, except at the end."""
        return [self._text([int(token) for token in row if token != PAD_ID]) for row in rows]

    def token(self, token_id: int) -> str:
        """The word of an id."""
        return self._words[token_id]

    def _ids(self, words: list[str]) -> np.ndarray:
        return np.fromiter(map(self._lookup.__getitem__, words), np.int32, len(words))

    def _document(self, text: str) -> np.ndarray:
        ids: list[int] = []
        for line in text.split("\n"):
            ids.extend(map(self._lookup.__getitem__, line.split()))
            ids.append(EOS_ID)
        return np.array(ids, np.int32)

    def _text(self, ids: list[int]) -> str:
        if ids and ids[-1] == EOS_ID:
            ids.pop()
        joined = " ".join("\n" if token == EOS_ID else self._words[token] for token in ids)
        return _AROUND_NEWLINE.sub("\n", joined)


class CharCodec:
    """Unicode characters, in the order of their code points; a newline is one of them.

    Args:
        vocabulary: ids by character, special tokens included.
    """

    kind = "char"
    unk_id: int | None = UNK_ID

    def __init__(self, vocabulary: Mapping[str, int]) -> None:
        self.vocab_size = len(vocabulary)
        self._characters = sorted(vocabulary, key=vocabulary.__getitem__)
        codes = np.array([ord(character) for character in self._characters[len(_SPECIALS) :]], np.int64)
        # One entry behind the last known code point stands for all that lie above it.
        self._ids_of_codes = np.full(int(codes.max(initial=0)) + 2, UNK_ID, np.int32)
        self._ids_of_codes[codes] = np.arange(len(_SPECIALS), self.vocab_size)

    @classmethod
    def train(cls, texts: Iterable[str]) -> "CharCodec":
        """Take every character that occurs."""
        characters: set[str] = set()
        for text in texts:
            characters.update(text)
        return cls(_numbered(sorted(characters)))

    def to_json(self) -> str:
        """The vocabulary as JSON of the `tokenizers` library."""
        library = tokenizers.Tokenizer(models.WordLevel(_numbered(self._characters[len(_SPECIALS) :]), unk_token=UNK))
        library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        library.decoder = decoders.Fuse()
        return _compact(library)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, int32, without `<eos>`."""
        return [self._ids(text) for text in texts]

    encode_prompts = encode

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, int32, with `<eos>` at its end."""
        return [np.append(self._ids(text), np.int32(EOS_ID)) for text in texts]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The characters of each row without `<pad>` and `<eos>`; an unknown one becomes U+FFFD."""
        return ["".join(self._shown(int(token)) for token in row if token > EOS_ID) for row in rows]

    def token(self, token_id: int) -> str:
        """The character of an id."""
        return self._characters[token_id]

    def _ids(self, text: str) -> np.ndarray:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        ids: np.ndarray = self._ids_of_codes[np.minimum(codes, len(self._ids_of_codes) - 1)]
        return ids

    def _shown(self, token: int) -> str:
        return "\N{REPLACEMENT CHARACTER}" if token == UNK_ID else self._characters[token]


def _numbered(entries: Sequence[str]) -> dict[str, int]:
    return {entry: number for number, entry in enumerate([*_SPECIALS, *entries])}


def _compact(library: tokenizers.Tokenizer) -> str:
    return json.dumps(json.loads(library.to_str()), ensure_ascii=False, separators=(",", ":"))
