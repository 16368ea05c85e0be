"""Random plans of clauses and sentences: which verb, who, what, where and when."""

import random
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

from rnnlm.demo import lexicon
from rnnlm.demo.german import Tense
from rnnlm.demo.grammar import Clause, Link, Sentence
from rnnlm.demo.lexicon import Adjective, Noun, Verb
from rnnlm.demo.names import Names, Person
from rnnlm.demo.phrases import Adverbial, NamePhrase, NounPhrase, Phrase, Prepositional, Pronoun, pronoun_for

_Choice = TypeVar("_Choice")
Frame = Literal["trade", "thing", "person", "dative", "gift", "motion", "still", "quality", "price", "have"]


def _spread(weights: Mapping[_Choice, int]) -> tuple[_Choice, ...]:
    """Each option as often as its weight says, so that a uniform draw is a weighted one."""
    return tuple(option for option, weight in weights.items() for _ in range(weight))


_FRAMES: tuple[Frame, ...] = _spread(
    {
        "trade": 10,
        "thing": 34,
        "person": 10,
        "dative": 7,
        "gift": 14,
        "motion": 11,
        "still": 5,
        "quality": 4,
        "price": 3,
        "have": 2,
    }
)
_TENSES: tuple[Tense, ...] = _spread(
    {
        "past": 50,
        "present": 26,
        "future": 6,
        "can": 4,
        "must": 5,
        "should": 3,
        "want": 4,
    }
)
_LINKS: tuple[Link, ...] = _spread(
    {
        "because": 22,
        "although": 14,
        "if": 8,
        "while": 10,
        "before": 12,
        "that": 16,
        "and": 8,
        "but": 10,
    }
)
_SINGULAR_DETERMINERS = (*("the", "a") * 4, "this", "my", "his", "her", "our", "their", "no")
_PLURAL_DETERMINERS = ("the", "these", "many", "some", "my", "his", "her", "our", "", "no")
_PLACE_PREPOSITIONS = (("in", "in"), ("in", "in"), ("behind", "hinter"), ("in front of", "vor"), ("next to", "neben"))
_PLAIN_TIMES = {
    "past": (("yesterday", "gestern"), ("last week", "letzte Woche"), ("last year", "letztes Jahr")),
    "present": (("today", "heute"), ("every day", "jeden Tag"), ("every week", "jede Woche")),
    "later": (("tomorrow", "morgen"), ("next week", "nächste Woche"), ("next year", "nächstes Jahr"), ("soon", "bald")),
}
_PLACE_ADJECTIVES = tuple(
    adjective for adjective in lexicon.THING_ADJECTIVES if adjective.english in ("old", "new", "big")
)
_THINGS = frozenset(lexicon.THINGS)


class Planner:
    """Draws plans from one source of randomness and one pool of names."""

    def __init__(self, rng: random.Random, names: Names) -> None:
        self.rng = rng
        self.names = names

    def sentence(self) -> Sentence:
        """One clause or two, with even odds."""
        tense = self._pick(_TENSES)
        if self.rng.random() < 0.5:
            return Sentence(self.clause(tense, self.subject(), detail=0.75, fronted=self.rng.random() < 0.4))
        link = self._pick(_LINKS)
        if link in ("if", "while", "before"):
            tense = "past" if tense == "past" and link != "if" else "present"
        if link == "that":
            return self._reported(tense)
        detail = 0.3
        opening = self.clause(tense, self.subject(), detail)
        closing = self._second(opening, "present" if tense not in ("past", "present") else tense, detail)
        if link not in ("and", "but") and self.rng.random() < 0.4:
            return Sentence(closing, link, opening, link_first=True)
        return Sentence(opening, link, closing)

    def clause(
        self, tense: Tense, subject: Phrase, detail: float, *, fronted: bool = False, known: Phrase | None = None
    ) -> Clause:
        """A clause about a subject; `detail` is the chance of each optional part, `known` a thing to refer back to."""
        frame = self._pick(_FRAMES)
        if frame in ("quality", "price", "have"):
            return self._state(frame, "past" if tense == "past" else "present", subject)
        times = self.times(tense) if self.rng.random() < detail or fronted else ()
        verb, dative, accusative = self._objects(frame, known)
        price = self._price() if frame == "trade" and self.rng.random() < 0.7 else ""
        company = self._company() if not dative and not price and self.rng.random() < detail / 2 else None
        place = self._destination() if frame == "motion" else None
        if frame != "motion" and self.rng.random() < detail / 1.5:
            place = self._location()
        objects = (dative, accusative, None)
        return Clause(subject, verb, tense, *objects, price, company, place, times, fronted=fronted)

    def subject(self) -> Phrase:
        """A name, two names, a person described, or a pronoun."""
        draw = self.rng.random()
        if draw < 0.5:
            return NamePhrase((self._person(),))
        if draw < 0.6:
            return NamePhrase(tuple(self.rng.sample(self.names.people, 2)))
        if draw < 0.9:
            return self._described(lexicon.PERSONS, lexicon.PERSON_ADJECTIVES, plural_share=0.15, subject=True)
        return Pronoun("we", "we") if draw < 0.95 else Pronoun("they", "they")

    def times(self, tense: Tense) -> tuple[Adverbial, ...]:
        """A day, a month, a year or a clock time, or a day with a clock time."""
        rng, draw = self.rng, self.rng.random()
        clock = self._clock()
        if draw < 0.2:
            return (clock,)
        if draw < 0.6:
            english, german = self._pick(lexicon.WEEKDAYS)
            day = Adverbial(f"on {english}", f"am {german}")
            return (day, clock) if rng.random() < 0.5 else (day,)
        if draw < 0.7:
            english, german = self._pick(lexicon.MONTHS)
            return (Adverbial(f"in {english}", f"im {german}"),)
        if draw < 0.78 and tense == "past":
            year = self._between(1950, 2029)
            return (Adverbial(f"in {year}", f"im Jahr {year}", "number"),)
        group = tense if tense in ("past", "present") else "later"
        return (Adverbial(*self._pick(_PLAIN_TIMES[group])),)

    def _reported(self, tense: Tense) -> Sentence:
        verb = self._word(lexicon.SAYING)
        saying: Tense = "past" if self.rng.random() < 0.5 else "present"
        main = Clause(self.subject(), verb, saying)
        if saying == "past":
            tense = "past"
        return Sentence(main, "that", self._second(main, tense, detail=0.4))

    def _second(self, first: Clause, tense: Tense, detail: float) -> Clause:
        """A clause that goes on from another one, often about the same subject or the same thing."""
        taken_up = self.rng.random() < 0.4 and first.quality is None and first.verb is not lexicon.COST
        subject = pronoun_for(first.subject) if taken_up else self.subject()
        thing = first.accusative
        exists = isinstance(thing, NounPhrase) and thing.noun in _THINGS and thing.determiner != "no"
        known = pronoun_for(thing) if thing and exists else None
        return self.clause(tense, subject, detail, known=known)

    def _objects(self, frame: Frame, known: Phrase | None) -> tuple[Verb, Phrase | None, Phrase | None]:
        """A verb for the frame, its dative and its accusative object."""
        rng = self.rng
        if frame in ("trade", "thing"):
            verb = self._word(lexicon.TRADE if frame == "trade" else lexicon.TRANSITIVE)
            if known and not verb.phrasal and rng.random() < 0.35:
                return verb, None, known
            return verb, None, self._thing()
        if frame == "person":
            verb = self._word(lexicon.PERSONAL)
            return verb, None, self._someone()
        if frame == "dative":
            return self._word(lexicon.DATIVE), self._someone(), None
        if frame == "gift":
            return self._word(lexicon.DITRANSITIVE), self._someone(), self._thing()
        return self._word(lexicon.MOTION if frame == "motion" else lexicon.INTRANSITIVE), None, None

    def _state(self, frame: Frame, tense: Tense, subject: Phrase) -> Clause:
        if frame == "have":
            return Clause(subject, lexicon.HAVE, tense, accusative=self._thing())
        if frame == "price":
            return Clause(self._thing(definite=True), lexicon.COST, tense, price=self._price())
        if self.rng.random() < 0.5:
            return Clause(subject, lexicon.BE, tense, quality=self._word(lexicon.PERSON_ADJECTIVES))
        thing = self._thing(definite=True)
        return Clause(thing, lexicon.BE, tense, quality=self._word(lexicon.THING_ADJECTIVES))

    def _thing(self, *, definite: bool = False) -> NounPhrase:
        noun = self._word(lexicon.THINGS)
        adjective = self._word(lexicon.THING_ADJECTIVES) if self.rng.random() < 0.45 else None
        if definite:
            plural = self.rng.random() < 0.3
            return NounPhrase(noun, self._pick(("the", "these" if plural else "this")), plural, adjective)
        draw = self.rng.random()
        if draw < 0.6:
            return NounPhrase(noun, self._pick(_SINGULAR_DETERMINERS), plural=False, adjective=adjective)
        if draw < 0.76:
            return NounPhrase(noun, str(self._between(13, 990)), plural=True, adjective=adjective)
        if draw < 0.84:
            return NounPhrase(noun, self._pick(lexicon.NUMBER_WORDS)[0], plural=True, adjective=adjective)
        return NounPhrase(noun, self._pick(_PLURAL_DETERMINERS), plural=True, adjective=adjective)

    def _someone(self) -> Phrase:
        draw = self.rng.random()
        if draw < 0.25:
            return NamePhrase((self._person(),))
        if draw < 0.4:
            word = self._pick(("he", "she", "they", "we"))
            return Pronoun(word, word)
        return self._described(lexicon.PERSONS, lexicon.PERSON_ADJECTIVES, plural_share=0.25)

    def _described(
        self, nouns: tuple[Noun, ...], adjectives: tuple[Adjective, ...], plural_share: float, *, subject: bool = False
    ) -> NounPhrase:
        noun, plural = self._word(nouns), self.rng.random() < plural_share
        possessives = ("my", "our") if subject else ("my", "our", "his", "her", "their")
        others = ("the", "many", "some") if plural else ("a",)
        determiner = self._pick(("the", "the", "the", self._pick(possessives), self._pick(others)))
        adjective = self._word(adjectives) if self.rng.random() < 0.4 else None
        return NounPhrase(noun, determiner, plural, adjective)

    def _company(self) -> Prepositional:
        english, german = self._pick((("with", "mit"), ("for", "für"), ("without", "ohne")))
        return Prepositional(english, german, "dat" if english == "with" else "acc", self._someone())

    def _location(self) -> Prepositional:
        if self.rng.random() < 0.4:
            return Prepositional("in", "in", "dat", self._pick(self.names.towns))
        english, german = self._pick(_PLACE_PREPOSITIONS)
        return Prepositional(english, german, "dat", self._building())

    def _destination(self) -> Prepositional:
        if self.rng.random() < 0.5:
            return Prepositional("to", "nach", "dat", self._pick(self.names.towns))
        return Prepositional("to", "zu", "dat", self._building())

    def _building(self) -> NounPhrase:
        adjective = self._pick(_PLACE_ADJECTIVES) if self.rng.random() < 0.25 else None
        determiner = self._pick(("the", "the", "the", "a", "our"))
        return NounPhrase(self._word(lexicon.PLACES), determiner, plural=False, adjective=adjective)

    def _person(self) -> Person:
        return self._pick(self.names.people)

    def _clock(self) -> Adverbial:
        hour, minute = self._between(6, 22), self._between(0, 11) * 5
        return Adverbial(f"at {hour}:{minute:02d}", f"um {hour}.{minute:02d} Uhr", "time")

    def _price(self) -> str:
        return f"{self._between(2, 320)}.{self._pick(('50', '20', '80', '95', '99', '45'))}"

    def _pick(self, options: Sequence[_Choice]) -> _Choice:
        """One of the options; several times faster than `Random.choice`, and a corpus makes half a million draws."""
        return options[int(self.rng.random() * len(options))]

    def _word(self, ranked: Sequence[_Choice]) -> _Choice:
        """A word of a ranked list: the first eighth of the list comes up in half of the draws, as in a language."""
        return ranked[int(self.rng.random() ** 3 * len(ranked))]

    def _between(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return low + int(self.rng.random() * (high - low + 1))
