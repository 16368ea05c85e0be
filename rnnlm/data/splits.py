"""Which split a unit belongs to: by a hash of its normalised source, so that rows with one source stay together.

A unit's place depends on its source and the seed alone, not on the order or the number of the other units. Among few
sources, where chance could leave a split empty or lopsided, the shares are met by rank instead, and a corpus of one
document is cut at line ends.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

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


def position(key: bytes, seed: int, purpose: str) -> float:
    """Where a source falls in [0, 1): uniform over sources, the same for equal sources, anew for each seed and purpose."""
    salted = hashlib.blake2b(key, digest_size=8, salt=purpose.encode()[:16], key=seed.to_bytes(8, "little"))
    return int.from_bytes(salted.digest(), "little") / 2**64


@dataclass
class Keyed:
    """A unit with the hashes of its source: `key` of the normalised one, `exact` of the one that the file has."""

    unit: Unit
    key: bytes
    exact: bytes
    whole: bytes
    """Hash of the whole normalised unit."""


def keyed(unit: Unit, normalize: Normalize) -> Keyed:
    """A unit with its hashes."""
    source = normalize(unit.source)
    key = source_key(source)
    exact = key if source == unit.raw_source else source_key(unit.raw_source)
    whole = key if unit.target is None else pair_key(source, normalize(unit.target))
    return Keyed(unit, key, exact, whole)


@dataclass
class Divider:
    """Divides units into splits by shares.

    Units are held back until there are more than a few sources and every split has one.

    Args:
        shares: split to its share of the units; those with share 0 get none.
        rest: the split that everything else goes to.
        seed: of the experiment.
        purpose: separates this division from others with the same seed.
    """

    shares: dict[str, float]
    rest: str
    seed: int
    purpose: str
    _held: list[tuple[str, Keyed]] = field(default_factory=list)
    _places: dict[bytes, float] = field(default_factory=dict)
    _missing: set[str] = field(default_factory=set)
    _flowing: bool = False

    def __post_init__(self) -> None:
        self.shares = {split: share for split, share in self.shares.items() if share > 0}
        self._missing = {*self.shares, self.rest}

    def feed(self, unit: Keyed) -> Iterator[tuple[str, Keyed]]:
        """Take a unit; gives those whose split is certain by now."""
        if not self.shares:
            yield self.rest, unit
            return
        place = position(unit.key, self.seed, self.purpose)
        split = self._split_at(place)
        if self._flowing:
            yield split, unit
            return
        self._held.append((split, unit))
        self._places[unit.key] = place
        self._missing.discard(split)
        if len(self._places) > FEW_SOURCES and not self._missing:
            self._flowing = True
            yield from self._held
            self._held.clear()

    def finish(self) -> Iterator[tuple[str, Keyed]]:
        """The units that are still held back: few sources, divided by rank, or a single document, which is cut."""
        if len(self._held) == 1 and self._held[0][1].unit.target is None:
            yield from self._cut(self._held[0][1])
        else:
            ranked = self._ranked()
            yield from ((ranked[unit.key], unit) for _, unit in self._held)
        self._held.clear()

    def _split_at(self, place: float) -> str:
        bound = 0.0
        for split, share in self.shares.items():
            bound += share
            if place < bound:
                return split
        return self.rest

    def _ranked(self) -> dict[bytes, str]:
        """Split of each source: the lowest places fill the shares, each with one at least while the rest keeps one."""
        order = iter(sorted(self._places, key=self._places.__getitem__))
        left = len(self._places) - 1
        splits: dict[bytes, str] = {}
        for split, share in self.shares.items():
            quota = min(left, max(1, round(share * len(self._places))))
            left -= quota
            splits.update((next(order), split) for _ in range(quota))
        return splits | dict.fromkeys(order, self.rest)

    def _cut(self, whole: Keyed) -> Iterator[tuple[str, Keyed]]:
        shares = [1 - sum(self.shares.values()), *self.shares.values()]
        parts = cut_lines(whole.unit.source, shares)
        if not all(part.strip() for part in parts):
            yield self.rest, whole
            return
        for split, part in zip([self.rest, *self.shares], parts, strict=True):
            unit_id = whole.unit.id if split == self.rest else f"{whole.unit.id}#{split}"
            key = source_key(part)
            yield split, Keyed(whole.unit._replace(id=unit_id, source=part, raw_source=part), key, key, key)


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
