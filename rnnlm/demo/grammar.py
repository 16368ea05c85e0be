"""Clauses and sentences of the synthetic corpus, said in English and in German from one plan.

The German side shows what a translator has to learn: case and gender agreement, the verb in second place with the rest
of the predicate at the end of the clause, inversion after a fronted adverbial or clause, the finite verb at the end of
a subordinate clause, and time before objects before place.
"""

from dataclasses import dataclass
from typing import Literal

from rnnlm.demo import german
from rnnlm.demo.german import Tense
from rnnlm.demo.lexicon import BE, COST, Adjective, Verb
from rnnlm.demo.phrases import Adverbial, NounPhrase, Phrase, Prepositional, Pronoun

Link = Literal["because", "although", "if", "while", "before", "that", "and", "but"]

_MODALS = {"future": "will", "can": "can", "must": "must", "should": "should"}
_LINKS: dict[Link, str] = {
    "because": "weil",
    "although": "obwohl",
    "if": "wenn",
    "while": "während",
    "before": "bevor",
    "that": "dass",
    "and": "und",
    "but": "aber",
}


@dataclass(frozen=True, slots=True)
class Clause:
    """One clause.

    `price` is an English amount like `12.50`; `quality` is what a form of "to be" says of the subject; with `fronted`
    the time expressions open the clause, in both languages.
    """

    subject: Phrase
    verb: Verb
    tense: Tense
    dative: Phrase | None = None
    accusative: Phrase | None = None
    quality: Adjective | NounPhrase | None = None
    price: str = ""
    company: Prepositional | None = None
    place: Prepositional | None = None
    times: tuple[Adverbial, ...] = ()
    fronted: bool = False

    def english(self) -> list[str]:
        """Subject, verb, objects, price, company, place, time."""
        times = [time.english for time in self.times]
        words = [*self.subject.english(subject=True), self._english_verb()]
        words += [word for part in (self.dative, self.accusative) if part for word in part.english()]
        if self.quality:
            words += [self.quality.english] if isinstance(self.quality, Adjective) else self.quality.english()
        if self.price:
            words += [self.price, "euros"] if self.verb is COST else ["for", self.price, "euros"]
        for phrase in (self.company, self.place):
            words += phrase.english() if phrase else []
        return [*times, *words] if self.fronted else [*words, *times]

    def german(self) -> list[str]:
        """Main clause: one part in front, the finite verb second, the rest of the predicate last."""
        finite, closing, _ = german.predicate(self.verb, self.tense, self.subject.plural)
        subject, times = self.subject.german("nom"), [time.german for time in self.times]
        if self.fronted:
            return [*times, finite, *subject, *self._middle([]), *closing]
        return [*subject, finite, *self._middle(times), *closing]

    def german_inverted(self) -> list[str]:
        """Main clause after a subordinate clause: the finite verb comes first."""
        finite, closing, _ = german.predicate(self.verb, self.tense, self.subject.plural)
        return [finite, *self.subject.german("nom"), *self._middle([time.german for time in self.times]), *closing]

    def german_subordinate(self) -> list[str]:
        """Subordinate clause, without its conjunction: the finite verb comes last."""
        _, _, final = german.predicate(self.verb, self.tense, self.subject.plural)
        return [*self.subject.german("nom"), *self._middle([time.german for time in self.times]), *final]

    def tags(self) -> set[str]:
        """Names of the phenomena in this clause."""
        tags = self.subject.tags() | {time.tag for time in self.times if time.tag}
        tags |= {"dative"} | self.dative.tags() if self.dative else set()
        tags |= {"accusative"} | self.accusative.tags() if self.accusative else set()
        tags |= self.quality.tags() if isinstance(self.quality, NounPhrase) else set()
        for phrase in (self.company, self.place):
            tags |= phrase.tags() if phrase else set()
        marks = {
            "price": bool(self.price),
            "inversion": self.fronted,
            "separable": bool(self.verb.prefix),
            "perfect": self.tense == "past" and not self.verb.preterite,
            "modal": self.tense in ("can", "must", "should", "want"),
            "future": self.tense == "future",
        }
        return tags | {tag for tag, holds in marks.items() if holds}

    def _english_verb(self) -> str:
        verb, plural = self.verb, self.subject.plural
        if self.tense == "present":
            plural_form = "are" if verb is BE else verb.base
            return plural_form if plural else verb.third
        if self.tense == "past":
            return (verb.past_plural or verb.past) if plural else verb.past
        modal = ("want to" if plural else "wants to") if self.tense == "want" else _MODALS[self.tense]
        return f"{modal} {verb.base}"

    def _middle(self, times: list[str]) -> list[str]:
        """What stands between the finite verb and the end: pronouns, times, objects, price, company, place."""
        pronouns: list[str] = []
        objects: list[str] = []
        if self.dative:
            (pronouns if isinstance(self.dative, Pronoun) else objects).extend(self.dative.german("dat"))
        if self.accusative:
            (pronouns if isinstance(self.accusative, Pronoun) else objects).extend(self.accusative.german("acc"))
        if self.quality:
            objects += [self.quality.german] if isinstance(self.quality, Adjective) else self.quality.german("nom")
        if self.price:
            amount = [self.price.replace(".", ","), "Euro"]
            objects += amount if self.verb is COST else ["für", *amount]
        for phrase in (self.company, self.place):
            objects += phrase.german() if phrase else []
        return [*pronouns, *times, *objects]


@dataclass(frozen=True, slots=True)
class Sentence:
    """One or two clauses. With `link_first` the linked clause opens the sentence ("Because ..., ...")."""

    main: Clause
    link: Link | None = None
    linked: Clause | None = None
    link_first: bool = False

    def english(self) -> str:
        """The source sentence."""
        words = self.main.english()
        if self.link and self.linked:
            other = self.linked.english()
            if self.link_first:
                words = [self.link, *other, ",", *words]
            else:
                words = [*words, *([","] if self.link == "but" else []), self.link, *other]
        return _write(words)

    def german(self) -> str:
        """The target sentence, a function of the source sentence."""
        if not self.link or not self.linked:
            return _write(self.main.german())
        link = _LINKS[self.link]
        if self.link in ("and", "but"):
            comma = [","] if self.link == "but" else []
            return _write([*self.main.german(), *comma, link, *self.linked.german()])
        if self.link_first:
            return _write([link, *self.linked.german_subordinate(), ",", *self.main.german_inverted()])
        return _write([*self.main.german(), ",", link, *self.linked.german_subordinate()])

    def clauses(self) -> list[Clause]:
        """The clauses, the main one first."""
        return [self.main, self.linked] if self.linked else [self.main]

    def tags(self) -> set[str]:
        """Names of the phenomena in this sentence."""
        tags = {tag for clause in self.clauses() for tag in clause.tags()}
        tags |= {"verb_final"} if self.link and self.link not in ("and", "but") else set()
        return tags | {"inversion"} if self.link_first else tags


def _write(words: list[str]) -> str:
    text = " ".join(words).replace(" ,", ",")
    return text[0].upper() + text[1:] + "."
