"""Which split a unit belongs to: by a hash of its normalised source, so that rows with one source stay together.

A unit's place depends on its source and the seed alone, not on the order or the number of the other units. Only where a
split would come out empty is the unit nearest to it moved there, and a corpus of one document is cut at a line end.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from rnnlm.data.units import Unit

Normalize = Callable[[str], str]


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

    Units are held back until every split has one, so that a small corpus leaves none empty.

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
    _held: list[tuple[str, float, Keyed]] = field(default_factory=list)
    _missing: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.shares = {split: share for split, share in self.shares.items() if share > 0}
        self._missing = {*self.shares, self.rest}

    def feed(self, unit: Keyed) -> Iterator[tuple[str, Keyed]]:
        """Take a unit; gives those whose split is certain by now."""
        if not self.shares:
            yield self.rest, unit
            return
        split, place = self._assign(unit.key)
        self._missing.discard(split)
        if not self._held and not self._missing:
            yield split, unit
            return
        self._held.append((split, place, unit))
        if not self._missing:
            yield from ((split, unit) for split, _, unit in self._held)
            self._held.clear()

    def finish(self) -> Iterator[tuple[str, Keyed]]:
        """The units that are still held back, moved or cut so that no split is empty where that can be."""
        if len(self._held) == 1 and self._held[0][2].unit.target is None:
            yield from self._cut(self._held[0][2])
        elif self._held:
            moved = self._moved({unit.key: (split, place) for split, place, unit in self._held})
            yield from ((moved[unit.key], unit) for _, _, unit in self._held)
        self._held.clear()

    def _assign(self, key: bytes) -> tuple[str, float]:
        place = position(key, self.seed, self.purpose)
        bound = 0.0
        for split, share in self.shares.items():
            bound += share
            if place < bound:
                return split, place
        return self.rest, place

    def _moved(self, places: dict[bytes, tuple[str, float]]) -> dict[bytes, str]:
        """Give each empty split the source with the lowest place of a split that has more than one."""
        splits = {key: split for key, (split, _) in places.items()}
        order = sorted(places, key=lambda key: places[key][1])
        for empty in [self.rest, *self.shares]:
            if empty in splits.values():
                continue
            count = {split: list(splits.values()).count(split) for split in set(splits.values())}
            giver = next((key for key in order if count[splits[key]] > 1), None)
            if giver is not None:
                splits[giver] = empty
        return splits

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
