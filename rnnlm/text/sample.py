"""A seeded sample of a corpus, to learn a vocabulary from."""

import heapq
from collections.abc import Iterable, Iterator

import numpy as np

_PIECES_IN_SAMPLE = 128
_PURPOSE = 0x5A3B1E


def sample_texts(texts: Iterable[str], max_bytes: int, seed: int, total_bytes: int | None = None) -> Iterator[str]:
    """Yield a sample of at most `max_bytes`, in the order of the corpus; everything where that is not more.

    Each text is as likely as any other. One that would fill a good part of the sample by itself is cut at line ends
    first, so that a corpus of a single file gives lines from all over it.

    Args:
        texts: the corpus, read once.
        max_bytes: most UTF-8 bytes of all sampled texts together.
        seed: chooses the sample; the same for equal texts in equal order.
        total_bytes: size of the corpus where it is known. Then nothing is held in memory; else the sample is.
    """
    if total_bytes is not None and total_bytes <= max_bytes:
        return iter(texts)
    pieces = (piece for text in texts for piece in _cut(text, max(1, max_bytes // _PIECES_IN_SAMPLE)))
    bits = np.random.PCG64(np.random.SeedSequence([seed, _PURPOSE]))
    if total_bytes is not None:
        return _thin(pieces, bits, max_bytes, total_bytes)
    return _smallest_keys(pieces, bits, max_bytes)


def _thin(pieces: Iterable[str], bits: np.random.PCG64, max_bytes: int, total_bytes: int) -> Iterator[str]:
    """Take each piece with the probability that fills the sample on average, until it is full."""
    threshold = (max_bytes << 64) // total_bytes
    left = max_bytes
    for piece in pieces:
        if int(bits.random_raw()) < threshold:
            size = num_bytes(piece)
            if size <= left:
                left -= size
                yield piece


def _smallest_keys(pieces: Iterable[str], bits: np.random.PCG64, max_bytes: int) -> Iterator[str]:
    """Give each piece a random key and keep those with the smallest keys that fit (a reservoir measured in bytes)."""
    heap: list[tuple[int, int, int, str]] = []
    used = 0
    for number, piece in enumerate(pieces):
        size = num_bytes(piece)
        heapq.heappush(heap, (-int(bits.random_raw()), number, size, piece))
        used += size
        while used > max_bytes:
            used -= heapq.heappop(heap)[2]
    for _, _, _, piece in sorted(heap, key=lambda entry: entry[1]):
        yield piece


def num_bytes(text: str) -> int:
    """UTF-8 bytes of a text."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _cut(text: str, piece_bytes: int) -> Iterator[str]:
    """Cut a long text into pieces of a quarter to two times a size: at line ends, else at spaces, else anywhere."""
    if num_bytes(text) <= piece_bytes:
        yield text
        return
    step = max(1, piece_bytes // 4)
    start = 0
    while len(text) - start > 2 * step:
        marks = (text.find(mark, start + step, start + 2 * step) for mark in "\n ")
        end = next((mark for mark in marks if mark >= 0), start + 2 * step - 1) + 1
        yield text[start:end]
        start = end
    yield text[start:]
