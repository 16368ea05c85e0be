"""The words of the synthetic corpora, as typed entries made from the lists in `words`.

Entries are compared by identity: each stands once in its list. A list's order is its order of frequency.
"""

import random
from dataclasses import dataclass
from functools import cache
from typing import Literal

from rnnlm.demo import words

Gender = Literal["m", "f", "n"]


@dataclass(frozen=True, slots=True, eq=False)
class Noun:
    """A countable noun; German nouns of the weak declension are not in the lists."""

    english: str
    english_plural: str
    gender: Gender
    german: str
    german_plural: str


@dataclass(frozen=True, slots=True, eq=False)
class Adjective:
    """An adjective whose German stem takes every ending unchanged."""

    english: str
    german: str


@dataclass(frozen=True, slots=True, eq=False)
class Verb:
    """A verb in the forms that the grammar uses.

    `base`, `third` and `past` are English (the particle of a phrasal verb included). German: `infinitive` and
    `present` (third person) stand without the separable `prefix`, `participle` with it. `preterite` is empty except
    for the two verbs whose spoken past is not the perfect.
    """

    base: str
    third: str
    past: str
    prefix: str
    infinitive: str
    present: str
    participle: str
    auxiliary: Literal["haben", "sein"] = "haben"
    present_plural: str = ""
    past_plural: str = ""
    preterite: str = ""

    @property
    def plural(self) -> str:
        """German present of the first and third person plural, without the prefix."""
        return self.present_plural or self.infinitive

    @property
    def phrasal(self) -> bool:
        """Whether the English verb has a particle or preposition of its own."""
        return " " in self.base


def _entries(table: str) -> list[list[str]]:
    parts = table.replace("\n", ";").split(";")
    return [[word.replace("_", " ") for word in part.split()] for part in parts if part.strip()]


def _ranked(table: str) -> list[list[str]]:
    """Entries in a fixed order that has nothing to do with gender or meaning: the rank sets how often one is drawn."""
    return random.Random("ranks of the demo lexicon").sample(_entries(table), len(_entries(table)))


def _noun(english: str, english_plural: str, gender: str, german: str, german_plural: str) -> Noun:
    genders: dict[str, Gender] = {"m": "m", "f": "f", "n": "n"}
    return Noun(english, english_plural, genders[gender], german, german_plural)


def _verb(base: str, third: str, past: str, infinitive: str, present: str, participle: str, sein: str = "") -> Verb:
    prefix, _, stem = infinitive.rpartition("|")
    return Verb(base, third, past, prefix, stem, present, participle, "sein" if sein else "haben")


def _nouns(table: str) -> tuple[Noun, ...]:
    return tuple(_noun(*entry) for entry in _ranked(table))


def _adjectives(table: str) -> tuple[Adjective, ...]:
    return tuple(Adjective(*entry) for entry in _ranked(table))


def _verbs(table: str) -> tuple[Verb, ...]:
    return tuple(_verb(*entry) for entry in _ranked(table))


PERSONS = _nouns(words.PERSONS)
THINGS = _nouns(words.THINGS)
PLACES = _nouns(words.PLACES)
THING_ADJECTIVES = _adjectives(words.THING_ADJECTIVES)
PERSON_ADJECTIVES = _adjectives(words.PERSON_ADJECTIVES)
TRADE = _verbs(words.TRADE)
TRANSITIVE = _verbs(words.TRANSITIVE)
PERSONAL = _verbs(words.PERSONAL)
DATIVE = _verbs(words.DATIVE)
DITRANSITIVE = _verbs(words.DITRANSITIVE)
MOTION = _verbs(words.MOTION)
INTRANSITIVE = _verbs(words.INTRANSITIVE)
SAYING = _verbs(words.SAYING)
BE = Verb("be", "is", "was", "", "sein", "ist", "gewesen", "sein", "sind", "were", "war")
HAVE = Verb("have", "has", "had", "", "haben", "hat", "gehabt", "haben", "haben", "had", "hatte")
COST = Verb("cost", "costs", "cost", "", "kosten", "kostet", "gekostet")

NUMBER_WORDS = (
    ("two", "zwei"),
    ("three", "drei"),
    ("four", "vier"),
    ("five", "fünf"),
    ("six", "sechs"),
    ("seven", "sieben"),
    ("eight", "acht"),
    ("nine", "neun"),
    ("ten", "zehn"),
    ("eleven", "elf"),
    ("twelve", "zwölf"),
)
WEEKDAYS = (
    ("Monday", "Montag"),
    ("Tuesday", "Dienstag"),
    ("Wednesday", "Mittwoch"),
    ("Thursday", "Donnerstag"),
    ("Friday", "Freitag"),
    ("Saturday", "Samstag"),
    ("Sunday", "Sonntag"),
)
MONTHS = (
    ("January", "Januar"),
    ("February", "Februar"),
    ("March", "März"),
    ("April", "April"),
    ("May", "Mai"),
    ("June", "Juni"),
    ("July", "Juli"),
    ("August", "August"),
    ("September", "September"),
    ("October", "Oktober"),
    ("November", "November"),
    ("December", "Dezember"),
)


@cache
def all_words() -> frozenset[str]:
    """Every word of both languages in the lists, lower-cased: what a made-up name must not be."""
    tables = [value for name, value in vars(words).items() if name.isupper()]
    pairs = (*NUMBER_WORDS, *WEEKDAYS, *MONTHS)
    listed = {word for table in tables for entry in _entries(table) for part in entry for word in part.split()}
    return frozenset(word.lower() for word in listed | {word for pair in pairs for word in pair})
