"""Phrases of the synthetic corpus, each of which can say itself in English and in German."""

from dataclasses import dataclass

from rnnlm.demo import german
from rnnlm.demo.german import Case
from rnnlm.demo.lexicon import THINGS, Adjective, Noun
from rnnlm.demo.names import Person

_OBJECT_PRONOUNS = {"he": "him", "she": "her", "it": "it", "they": "them", "we": "us"}
_THINGS = frozenset(THINGS)
_AN = ("a", "e", "i", "o", "u", "honest")
_NOT_AN = ("useful", "university")


@dataclass(frozen=True, slots=True)
class NounPhrase:
    """A noun with an English determiner (`the`, `a`, `no`, `her`, `many`, a number, `""` before a bare plural)."""

    noun: Noun
    determiner: str
    plural: bool = False
    adjective: Adjective | None = None

    def english(self, subject: bool = False) -> list[str]:
        """The words of the phrase; subject and object look alike."""
        del subject
        described = [self.adjective.english] if self.adjective else []
        words = [*described, self.noun.english_plural if self.plural else self.noun.english]
        first = indefinite(words[0]) if self.determiner == "a" else self.determiner
        return [first, *words] if first else words

    def german(self, case: Case) -> list[str]:
        """The words of the phrase in a case, with article, adjective and noun in agreement."""
        gender = "p" if self.plural else self.noun.gender
        words = [german.determiner(self.determiner, case, gender)] if self.determiner else []
        if self.adjective:
            words.append(german.inflect(self.adjective, self.determiner, case, gender))
        return [*words, german.noun_form(self.noun, case, self.plural)]

    def tags(self) -> set[str]:
        """What a learner has to get right in this phrase."""
        tags = {"plural"} if self.plural else set()
        if self.adjective:
            tags.add("adjective")
        return tags | {"number"} if self.determiner.isdigit() else tags


@dataclass(frozen=True, slots=True)
class NamePhrase:
    """One person, or several joined by "and"; names do not change with the case."""

    people: tuple[Person, ...]

    @property
    def plural(self) -> bool:
        """Whether more than one person is named."""
        return len(self.people) > 1

    def english(self, subject: bool = False) -> list[str]:
        """The names with "and" between them."""
        del subject
        return " and ".join(person.name for person in self.people).split()

    def german(self, case: Case) -> list[str]:
        """The names with "und" between them."""
        del case
        return " und ".join(person.name for person in self.people).split()

    def tags(self) -> set[str]:
        """Always `name`."""
        return {"name"}


@dataclass(frozen=True, slots=True)
class Pronoun:
    """A personal pronoun, by its English nominative; `it` takes the gender of the German noun that it stands for."""

    word: str
    german_word: str

    @property
    def plural(self) -> bool:
        """Whether the verb stands in the plural."""
        return self.word in ("we", "they")

    def english(self, subject: bool = False) -> list[str]:
        """The nominative for a subject, else the object form."""
        return [self.word if subject else _OBJECT_PRONOUNS[self.word]]

    def german(self, case: Case) -> list[str]:
        """The pronoun in a case."""
        return [german.pronoun(self.german_word, case)]

    def tags(self) -> set[str]:
        """Always `pronoun`."""
        return {"pronoun"}


Phrase = NounPhrase | NamePhrase | Pronoun


@dataclass(frozen=True, slots=True)
class Prepositional:
    """A preposition with a phrase in the case that the German preposition asks for, or with the name of a town."""

    preposition: str
    german_preposition: str
    case: Case
    phrase: Phrase | str

    def english(self) -> list[str]:
        """The preposition before the phrase."""
        inner = [self.phrase] if isinstance(self.phrase, str) else self.phrase.english()
        return [self.preposition, *inner]

    def german(self) -> list[str]:
        """The preposition before the phrase, contracted with its article where German does so."""
        inner = [self.phrase] if isinstance(self.phrase, str) else self.phrase.german(self.case)
        return german.contract(self.german_preposition, inner)

    def tags(self) -> set[str]:
        """The case where an article or pronoun shows it, and the phrase's own."""
        if isinstance(self.phrase, str):
            return {"name"}
        shows = not isinstance(self.phrase, NamePhrase)
        return self.phrase.tags() | ({"dative" if self.case == "dat" else "accusative"} if shows else set())


@dataclass(frozen=True, slots=True)
class Adverbial:
    """A time expression, with the tag that it brings along (`time` for a clock time, `number` for a year, or none)."""

    english: str
    german: str
    tag: str = ""


def indefinite(next_word: str) -> str:
    """`a` or `an`, by the sound that follows."""
    return "an" if next_word.startswith(_AN) and not next_word.startswith(_NOT_AN) else "a"


def pronoun_for(phrase: Phrase) -> Pronoun:
    """The pronoun that takes up a phrase in a later clause."""
    if isinstance(phrase, Pronoun):
        return phrase
    if phrase.plural:
        return Pronoun("they", "they")
    if isinstance(phrase, NamePhrase):
        word = "she" if phrase.people[0].female else "he"
        return Pronoun(word, word)
    word = {"m": "he", "f": "she", "n": "it"}[phrase.noun.gender]
    return Pronoun("it" if phrase.noun in _THINGS else word, word)
