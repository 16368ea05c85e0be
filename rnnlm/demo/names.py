"""Made-up names of people and towns, built from syllables, in pools that share no name.

Nobody's real name is used, a name is spelt alike in both languages, and the names of the held-out pools follow the same
sound pattern as the names of train: what a model does with them is copying, not knowledge.
"""

import random
from dataclasses import dataclass
from functools import cache
from typing import Literal

from rnnlm.demo.lexicon import all_words

Pool = Literal["train", "valid", "test", "new"]

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "br", "dr", "tr", "kr", "st")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("", "n", "r", "l", "s", "k")
_MALE_ENDS = ("an", "on", "ek", "ur", "is")
_FEMALE_ENDS = ("a", "ia", "ela", "ina")
_TOWN_ENDS = ("mar", "vik", "stel", "hagen", "bek", "lund", "dorn", "ten")
_PEOPLE_SIZES: dict[Pool, int] = {"train": 1_600, "valid": 120, "test": 120, "new": 40}
_TOWN_SIZES: dict[Pool, int] = {"train": 500, "valid": 40, "test": 40, "new": 20}


@dataclass(frozen=True, slots=True)
class Person:
    """A made-up first name. Female names end in `a`, male names in a consonant."""

    name: str
    female: bool


@dataclass(frozen=True, slots=True)
class Names:
    """One pool of people and towns."""

    people: tuple[Person, ...]
    towns: tuple[str, ...]


@cache
def names(pool: Pool) -> Names:
    """The names of one pool; pools are disjoint and the same in every process."""
    people, towns = _all_people(), _all_towns()
    people_start, town_start = _start(pool, _PEOPLE_SIZES), _start(pool, _TOWN_SIZES)
    return Names(
        people[people_start : people_start + _PEOPLE_SIZES[pool]],
        towns[town_start : town_start + _TOWN_SIZES[pool]],
    )


def _start(pool: Pool, sizes: dict[Pool, int]) -> int:
    order = list(sizes)
    return sum(sizes[earlier] for earlier in order[: order.index(pool)])


def _stem(rng: random.Random) -> str:
    stem = rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
    return stem + rng.choice(_ONSETS[:13])


@cache
def _all_people() -> tuple[Person, ...]:
    rng = random.Random("people of the demo corpora")
    found: dict[str, Person] = {}
    while len(found) < sum(_PEOPLE_SIZES.values()):
        female = rng.random() < 0.5
        name = (_stem(rng) + rng.choice(_FEMALE_ENDS if female else _MALE_ENDS)).capitalize()
        if name.lower() not in all_words():
            found[name] = Person(name, female)
    return tuple(found.values())


@cache
def _all_towns() -> tuple[str, ...]:
    rng = random.Random("towns of the demo corpora")
    taken = {person.name for person in _all_people()}
    found: dict[str, None] = {}
    while len(found) < sum(_TOWN_SIZES.values()):
        name = (_stem(rng)[:-1] + rng.choice(_TOWN_ENDS)).capitalize()
        if name.lower() not in all_words() and name not in taken:
            found[name] = None
    return tuple(found)
