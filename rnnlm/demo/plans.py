"""Random plans of clauses and sentences: which verb, who, what, where and when."""

import random
from typing import Literal, TypeVar

from rnnlm.demo import lexicon
from rnnlm.demo.german import Tense
from rnnlm.demo.grammar import Clause, Link, Sentence
from rnnlm.demo.lexicon import Adjective, Noun, Verb
from rnnlm.demo.names import Names, Person
from rnnlm.demo.phrases import Adverbial, NamePhrase, NounPhrase, Phrase, Prepositional, Pronoun, pronoun_for

_Choice = TypeVar("_Choice", bound=str)
Frame = Literal["trade", "thing", "person", "dative", "gift", "motion", "still", "quality", "price", "have"]

_FRAMES: dict[Frame, int] = {
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
_TENSES: dict[Tense, int] = {
    "past": 46,
    "present": 24,
    "future": 8,
    "can": 5,
    "must": 6,
    "should": 4,
    "want": 5,
    "may": 2,
}
_LINKS: dict[Link, int] = {
    "because": 22,
    "although": 14,
    "if": 8,
    "while": 10,
    "before": 12,
    "that": 16,
    "and": 8,
    "but": 10,
}
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
        """One clause in two of five sentences, else two."""
        tense = self._weighted(_TENSES)
        if self.rng.random() < 0.4:
            return Sentence(self.clause(tense, self.subject(), detail=0.75, fronted=self.rng.random() < 0.4))
        link = self._weighted(_LINKS)
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
        frame = self._weighted(_FRAMES)
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
            return NamePhrase((self._person(), self._person()))
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
            english, german = rng.choice(lexicon.WEEKDAYS)
            day = Adverbial(f"on {english}", f"am {german}")
            return (day, clock) if rng.random() < 0.5 else (day,)
        if draw < 0.7:
            english, german = rng.choice(lexicon.MONTHS)
            return (Adverbial(f"in {english}", f"im {german}"),)
        if draw < 0.78 and tense == "past":
            year = rng.randint(1950, 2029)
            return (Adverbial(f"in {year}", f"im Jahr {year}", "number"),)
        group = tense if tense in ("past", "present") else "later"
        return (Adverbial(*rng.choice(_PLAIN_TIMES[group])),)

    def _reported(self, tense: Tense) -> Sentence:
        verb = self.rng.choice(lexicon.SAYING)
        saying: Tense = "past" if self.rng.random() < 0.5 else "present"
        main = Clause(self.subject(), verb, saying)
        if saying == "past":
            tense = "past"
        return Sentence(main, "that", self._second(main, tense, detail=0.4))

    def _second(self, first: Clause, tense: Tense, detail: float) -> Clause:
        """A clause that goes on from another one, often about the same subject or the same thing."""
        taken_up = self.rng.random() < 0.4 and first.quality is None and first.verb is not lexicon.COST
        subject = pronoun_for(first.subject) if taken_up else self.subject()
        is_thing = isinstance(first.accusative, NounPhrase) and first.accusative.noun in _THINGS
        known = pronoun_for(first.accusative) if first.accusative and is_thing else None
        return self.clause(tense, subject, detail, known=known)

    def _objects(self, frame: Frame, known: Phrase | None) -> tuple[Verb, Phrase | None, Phrase | None]:
        """A verb for the frame, its dative and its accusative object."""
        rng = self.rng
        if frame in ("trade", "thing"):
            verb = rng.choice(lexicon.TRADE if frame == "trade" else lexicon.TRANSITIVE)
            if known and not verb.phrasal and rng.random() < 0.35:
                return verb, None, known
            return verb, None, self._thing()
        if frame == "person":
            verb = rng.choice(lexicon.PERSONAL)
            return verb, None, self._someone()
        if frame == "dative":
            return rng.choice(lexicon.DATIVE), self._someone(), None
        if frame == "gift":
            return rng.choice(lexicon.DITRANSITIVE), self._someone(), self._thing()
        return rng.choice(lexicon.MOTION if frame == "motion" else lexicon.INTRANSITIVE), None, None

    def _state(self, frame: Frame, tense: Tense, subject: Phrase) -> Clause:
        if frame == "have":
            return Clause(subject, lexicon.HAVE, tense, accusative=self._thing())
        if frame == "price":
            return Clause(self._thing(definite=True), lexicon.COST, tense, price=self._price())
        if self.rng.random() < 0.5:
            return Clause(subject, lexicon.BE, tense, quality=self.rng.choice(lexicon.PERSON_ADJECTIVES))
        thing = self._thing(definite=True)
        return Clause(thing, lexicon.BE, tense, quality=self.rng.choice(lexicon.THING_ADJECTIVES))

    def _thing(self, *, definite: bool = False) -> NounPhrase:
        noun = self.rng.choice(lexicon.THINGS)
        adjective = self.rng.choice(lexicon.THING_ADJECTIVES) if self.rng.random() < 0.45 else None
        if definite:
            plural = self.rng.random() < 0.3
            return NounPhrase(noun, self.rng.choice(("the", "these" if plural else "this")), plural, adjective)
        draw = self.rng.random()
        if draw < 0.6:
            return NounPhrase(noun, self.rng.choice(_SINGULAR_DETERMINERS), plural=False, adjective=adjective)
        if draw < 0.76:
            return NounPhrase(noun, str(self.rng.randint(13, 990)), plural=True, adjective=adjective)
        if draw < 0.84:
            return NounPhrase(noun, self.rng.choice(lexicon.NUMBER_WORDS)[0], plural=True, adjective=adjective)
        return NounPhrase(noun, self.rng.choice(_PLURAL_DETERMINERS), plural=True, adjective=adjective)

    def _someone(self) -> Phrase:
        draw = self.rng.random()
        if draw < 0.25:
            return NamePhrase((self._person(),))
        if draw < 0.4:
            word = self.rng.choice(("he", "she", "they", "we"))
            return Pronoun(word, word)
        return self._described(lexicon.PERSONS, lexicon.PERSON_ADJECTIVES, plural_share=0.25)

    def _described(
        self, nouns: tuple[Noun, ...], adjectives: tuple[Adjective, ...], plural_share: float, *, subject: bool = False
    ) -> NounPhrase:
        noun, plural = self.rng.choice(nouns), self.rng.random() < plural_share
        possessives = ("my", "our") if subject else ("my", "our", "his", "her", "their")
        others = ("the", "many", "some") if plural else ("a",)
        determiner = self.rng.choice(("the", "the", "the", self.rng.choice(possessives), self.rng.choice(others)))
        adjective = self.rng.choice(adjectives) if self.rng.random() < 0.4 else None
        return NounPhrase(noun, determiner, plural, adjective)

    def _company(self) -> Prepositional:
        english, german = self.rng.choice((("with", "mit"), ("for", "für"), ("without", "ohne")))
        return Prepositional(english, german, "dat" if english == "with" else "acc", self._someone())

    def _location(self) -> Prepositional:
        if self.rng.random() < 0.4:
            return Prepositional("in", "in", "dat", self.rng.choice(self.names.towns))
        english, german = self.rng.choice(_PLACE_PREPOSITIONS)
        return Prepositional(english, german, "dat", self._building())

    def _destination(self) -> Prepositional:
        if self.rng.random() < 0.5:
            return Prepositional("to", "nach", "dat", self.rng.choice(self.names.towns))
        return Prepositional("to", "zu", "dat", self._building())

    def _building(self) -> NounPhrase:
        adjective = self.rng.choice(_PLACE_ADJECTIVES) if self.rng.random() < 0.25 else None
        determiner = self.rng.choice(("the", "the", "the", "a", "our"))
        return NounPhrase(self.rng.choice(lexicon.PLACES), determiner, plural=False, adjective=adjective)

    def _person(self) -> Person:
        return self.rng.choice(self.names.people)

    def _clock(self) -> Adverbial:
        hour, minute = self.rng.randint(6, 22), self.rng.randint(0, 11) * 5
        return Adverbial(f"at {hour}:{minute:02d}", f"um {hour}.{minute:02d} Uhr", "time")

    def _price(self) -> str:
        return f"{self.rng.randint(2, 320)}.{self.rng.choice(('50', '20', '80', '95', '99', '45'))}"

    def _weighted(self, weights: dict[_Choice, int]) -> _Choice:
        return self.rng.choices(list(weights), list(weights.values()))[0]
