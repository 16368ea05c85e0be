"""Byte-level byte-pair encoding: 256 bytes and their most frequent merges, so that nothing is ever unknown.

Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units" (https://arxiv.org/abs/1508.07909);
over bytes and with the splitting rule of GPT-2 (Radford et al. 2019). That rule keeps a run of blanks together, its last
one apart, so that the line break and indentation of source code can become one token.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from rnnlm.text.special import EOS, EOS_ID, PAD

# A cut here changes no token: the splitting rule never joins a visible character with a single blank that follows it,
# whereas a run of two or more blanks is split by what comes after it.
_SAFE_CUT = re.compile(r"(?<=\S)(?=[ \n]\S)")
# So does one before every run of blanks: what a run turns into depends on what follows it, never on what is before it.
_UNIT = re.compile(r"\s*\S+|\s+")
# Blanks to Python, but not to the library's splitting rule.
_DISPUTED_BLANKS = "\x1c\x1d\x1e\x1f"
_PIECE_CHARACTERS = 1 << 20
_GROUP_CHARACTERS = 1 << 22
_CACHE_SIZE = 1 << 25
_ENTRY_SIZE = 64


class BpeCodec:
    """Encodes and decodes with a trained merge table.

    Encoding looks most words up in a cache of what the library made of them before: several times as fast as the library.

    Args:
        serialized: the vocabulary as JSON of the `tokenizers` library.
    """

    kind = "bpe"
    unk_id: int | None = None

    def __init__(self, serialized: str) -> None:
        self._json = serialized
        self._library = tokenizers.Tokenizer.from_str(serialized)
        self.vocab_size: int = self._library.get_vocab_size(with_added_tokens=False)
        self._cache: dict[str, bytes] = {}
        self._cache_size = 0

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int, min_frequency: int) -> "BpeCodec":
        """Learn merges. The vocabulary stays smaller than asked where no pair is frequent enough any more."""
        library = tokenizers.Tokenizer(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=[PAD, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        library.train_from_iterator((piece for text in texts for piece in pieces(text)), trainer)
        state = json.loads(library.to_str())
        # Ids 0 and 1 stay reserved, but as they are no added tokens the text "<eos>" is encoded like any other.
        state["added_tokens"] = []
        return cls(json.dumps(state, ensure_ascii=False, separators=(",", ":")))

    def to_json(self) -> str:
        """The vocabulary, as it was given or trained."""
        return self._json

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, int32, without `<eos>`."""
        return [np.frombuffer(raw, np.int32).copy() for raw in self._encode(texts)]

    encode_prompts = encode

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, int32, with `<eos>` at its end."""
        end = np.int32(EOS_ID).tobytes()
        return [np.frombuffer(raw + end, np.int32).copy() for raw in self._encode(texts)]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row without special tokens; bytes that are not UTF-8 become U+FFFD."""
        plain = [[int(token) for token in row if token > EOS_ID] for row in rows]
        texts: list[str] = self._library.decode_batch(plain, skip_special_tokens=False)
        return texts

    def token(self, token_id: int) -> str:
        """The text of one token, or its bytes in hexadecimal where it holds a part of a character."""
        name: str | None = self._library.id_to_token(token_id)
        if name is None:
            raise IndexError(f"token {token_id} is not in the vocabulary of {self.vocab_size}")
        if token_id <= EOS_ID:
            return name
        raw = bytes(_BYTES[character] for character in name)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in raw)

    def _encode(self, texts: Sequence[str]) -> Iterator[bytes]:
        """Token ids of each text as the bytes of an int32 array."""
        split = [pieces(text) for text in texts]
        encoded = self._encode_pieces(piece for parts in split for piece in parts)
        for parts in split:
            yield b"".join([next(encoded) for _ in parts])

    def _encode_pieces(self, parts: Iterable[str]) -> Iterator[bytes]:
        for group in _grouped(parts):
            units = [_units(part) for part in group]
            cache = self._cache
            unseen = list(set(chain.from_iterable(units)).difference(cache))
            for unit, encoding in zip(unseen, self._library.encode_batch_fast(unseen, add_special_tokens=False)):
                cache[unit] = np.array(encoding.ids, np.int32).tobytes()
            self._cache_size += sum(map(len, unseen)) + _ENTRY_SIZE * len(unseen)
            if self._cache_size > _CACHE_SIZE:
                # Another thread may still read the old one, so it is not emptied.
                self._cache, self._cache_size = {}, 0
            yield from (b"".join(map(cache.__getitem__, part)) for part in units)


def _units(text: str) -> list[str]:
    """Cut a text into words, each with the blanks before it, so that no token spans two of them."""
    if any(blank in text for blank in _DISPUTED_BLANKS):
        return [text]
    return _UNIT.findall(text)


def pieces(text: str) -> list[str]:
    """Cut a long text where no token can span, so that it can be worked on piece by piece."""
    if len(text) <= _PIECE_CHARACTERS:
        return [text]
    parts = []
    start = 0
    while len(text) - start > _PIECE_CHARACTERS:
        cut = _SAFE_CUT.search(text, start + _PIECE_CHARACTERS)
        if cut is None:
            break
        parts.append(text[start : cut.start()])
        start = cut.start()
    parts.append(text[start:])
    return parts


def _grouped(parts: Iterable[str]) -> Iterator[list[str]]:
    group: list[str] = []
    characters = 0
    for part in parts:
        group.append(part)
        characters += len(part) + 1
        if characters >= _GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _byte_of_character() -> dict[str, int]:
    """The byte behind each character of the byte-level alphabet: visible Latin-1 stands for itself, the rest follows."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(visible))
    return {chr(byte): byte for byte in visible} | {chr(256 + number): byte for number, byte in enumerate(hidden)}


_BYTES = _byte_of_character()
