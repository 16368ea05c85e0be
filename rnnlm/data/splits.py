"""Which split a unit belongs to: by a hash of its normalised source, so that rows with one source stay together.

A unit's place depends on its source and the seed alone, not on the order or the number of the other units. Among few
sources, where chance could leave a split empty or lopsided, the shares are met by rank instead, and a corpus of one
document is cut at line ends.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from rnnlm.data.keys import KEY_BYTES
from rnnlm.data.units import Unit

Normalize = Callable[[str], str]

FEW_SOURCES = 100
"""Up to so many distinct sources are divided by rank."""


def source_key(text: str) -> bytes:
    """A hash of 16 bytes."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def pair_key(source: str, target: str) -> bytes:
    """A hash of 16 bytes over both sides of a pair."""
    digest = hashlib.blake2b(source.encode(), digest_size=16)
    digest.update(b"\0")
    digest.update(target.encode())
    return digest.digest()


def positions(keys: bytes | memoryview, seed: int, purpose: str) -> np.ndarray:
    """Where sources fall in [0, 1), float64: uniform, the same for equal sources, anew for each seed and purpose.

    Args:
        keys: of 16 bytes each, one after another.
        seed: of the experiment.
        purpose: separates divisions with the same seed.
    """
    salted = hashlib.blake2b(digest_size=8, salt=purpose.encode()[:16], key=seed.to_bytes(8, "little"))
    digests = []
    for start in range(0, len(keys), KEY_BYTES):
        hashed = salted.copy()
        hashed.update(keys[start : start + KEY_BYTES])
        digests.append(hashed.digest())
    return np.frombuffer(b"".join(digests), "<u8") / 2**64


class Keyed(NamedTuple):
    """A unit with the hashes of its source: `key` of the normalised one, `exact` of the one that the file has.

    `whole` is the hash of the whole normalised unit.
    """

    unit: Unit
    key: bytes
    exact: bytes
    whole: bytes


def keyed(unit: Unit, normalize: Normalize) -> Keyed:
    """A unit with its hashes."""
    source = normalize(unit.source)
    key = source_key(source)
    exact = key if source == unit.raw_source else source_key(unit.raw_source)
    whole = key if unit.target is None else pair_key(source, normalize(unit.target))
    return Keyed(unit, key, exact, whole)


@dataclass(frozen=True)
class Division:
    """Which split each source belongs to.

    Attributes:
        shares: split to its share of the sources, none of them 0.
        rest: the split that everything else goes to.
        seed: of the experiment.
        purpose: separates this division from others with the same seed.
        bounds: float64, where the splits in `shares` end in [0, 1), one after another.
        is_lone: there is a single unit to divide.
    """

    shares: dict[str, float]
    rest: str
    seed: int
    purpose: str
    bounds: np.ndarray
    is_lone: bool = False

    @classmethod
    def plan(
        cls, keys: Iterable[bytes | memoryview], shares: Mapping[str, float], *, rest: str, seed: int, purpose: str
    ) -> "Division":
        """A division by shares; by rank where there are few sources, or where a split would stay empty.

        Args:
            keys: of all units, 16 bytes each. They are read until it is clear that there are enough. Where a share is
                so small that its split stays empty, the places of all sources are held, 8 bytes each.
            shares: split to its share; those with share 0 get nothing.
            rest: the split that everything else goes to.
            seed: of the experiment.
            purpose: separates this division from others with the same seed.
        """
        shares = {split: share for split, share in shares.items() if share > 0}
        by_share = cls(shares, rest, seed, purpose, np.cumsum(list(shares.values())))
        if not shares:
            return by_share
        places, num_units = np.empty(0), 0
        for some in keys:
            num_units += len(some) // KEY_BYTES
            places = np.union1d(places, positions(some, seed, purpose))
            if len(places) > FEW_SOURCES and len(np.unique(by_share.numbers(places))) > len(shares):
                return by_share
        return replace(by_share, bounds=_bounds_by_rank(places, list(shares.values())), is_lone=num_units == 1)

    def numbers(self, places: np.ndarray) -> np.ndarray:
        """For each place the number of its split in `shares`; one more for the rest."""
        return np.searchsorted(self.bounds, places, side="right")

    def masks(self, keys: bytes | memoryview) -> Iterator[tuple[str, np.ndarray]]:
        """Each split that gets some of the units, and which of them, bool."""
        if not self.shares:
            yield self.rest, np.ones(len(keys) // KEY_BYTES, bool)
            return
        numbers = self.numbers(positions(keys, self.seed, self.purpose))
        for number, split in enumerate([*self.shares, self.rest]):
            mask = numbers == number
            if mask.any():
                yield split, mask

    def cut(self, text: str) -> dict[str, str]:
        """The part of each split in a document that is all there is; the rest gets all of it where a part would be blank."""
        parts = cut_lines(text, [1 - sum(self.shares.values()), *self.shares.values()])
        if not all(part.strip() for part in parts):
            return {self.rest: text}
        return dict(zip([self.rest, *self.shares], parts, strict=True))


def _bounds_by_rank(places: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Bounds so that the lowest places fill the shares, each with one at least while the rest keeps one.

    Args:
        places: of all sources, rising.
        shares: above 0.
    """
    left, filled, bounds = len(places) - 1, 0, []
    for share in shares:
        quota = max(0, min(left, max(1, round(share * len(places)))))
        left -= quota
        filled += quota
        bounds.append(places[filled] if len(places) else 0.0)
    return np.array(bounds)


def cut_lines(text: str, shares: Sequence[float]) -> list[str]:
    """Cut a text into consecutive parts at the line ends nearest to shares of its characters.

    The parts joined are the text. A part is empty where the text has too few lines.
    """
    parts = []
    start, done = 0, 0.0
    for share in shares[:-1]:
        done += share
        end = max(start, _nearest_line_start(text, round(done * len(text))))
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]


def _nearest_line_start(text: str, place: int) -> int:
    """The start of the line nearest to a place, never the text's first line nor its end."""
    inner = text.removesuffix("\n")
    before = inner.rfind("\n", 0, place) + 1
    after = inner.find("\n", place) + 1
    candidates = [start for start in (before, after) if start > 0]
    return min(candidates, key=lambda start: abs(start - place)) if candidates else len(text)
