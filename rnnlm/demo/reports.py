"""Short synthetic reports of events, and the one sentence that sums each of them up.

The facts of an event stand in separate sentences, in any order and among sentences about other people, amounts and
places. The summary gathers them in a fixed form, so that one answer is right.
"""

import random
from dataclasses import dataclass
from typing import Protocol

from rnnlm.demo import lexicon
from rnnlm.demo.lexicon import Adjective, Noun
from rnnlm.demo.names import Names
from rnnlm.demo.phrases import indefinite

_WHERE_AND_WHEN = ("It happened in {town} {when}.", "All this took place in {town} {when}.")
_GOODS = ("The goods were {goods}.", "It was about {goods}.", "The list named {goods}.")
_DISTRACTORS = (
    "{name} from {town} told us about it.",
    "{name} watched from {a_place}.",
    "{a_person} in {town} took some photos.",
    "About {number} people stood outside.",
    "Last year the figure was {number} euros.",
    "{a_person} asked for {number} {things}.",
    "The next event is planned in {town}.",
    "Nobody had heard of {name} before.",
    "{name} waited near the {place} until {clock}.",
    "The {place} has been {adjective} for {number} days.",
)


@dataclass(frozen=True, slots=True)
class Transfer:
    """An event in which things go from hand to hand: two roles, the verb that sums it up, and what the money was."""

    kind: str
    giver: str
    taker: str
    verb: str
    preposition: str
    money: str
    amount: str


TRANSFERS = (
    Transfer("sale", "seller", "buyer", "sold", "to", "price", "for"),
    Transfer("loan", "lender", "borrower", "lent", "to", "fee", "for"),
    Transfer("gift", "donor", "heir", "gave", "to", "value", "worth"),
    Transfer("theft", "thief", "victim", "stole", "from", "loss", "worth"),
    Transfer("delivery", "driver", "customer", "delivered", "to", "charge", "for"),
    Transfer("repair", "mechanic", "owner", "repaired", "for", "bill", "for"),
    Transfer("order", "client", "supplier", "ordered", "from", "deposit", "for"),
    Transfer("find", "finder", "loser", "returned", "to", "reward", "for"),
)


class Event(Protocol):
    """What happened. `kind` and `thing` are the two values whose combinations can be withheld."""

    @property
    def kind(self) -> str:
        """The kind of event, also a tag."""
        ...

    @property
    def thing(self) -> Noun | None:
        """The thing it was about, if any."""
        ...

    def sentences(self, rng: random.Random) -> list[str]:
        """The facts, each in one of its wordings."""
        ...

    def summary(self) -> str:
        """The sentence that gathers the facts."""
        ...


@dataclass(frozen=True, slots=True)
class TransferEvent:
    """Somebody sells, lends, steals ... things."""

    transfer: Transfer
    giver: str
    taker: str
    count: int
    adjective: Adjective
    thing: Noun
    money: int
    town: str
    when: str

    @property
    def kind(self) -> str:
        """The kind of transfer."""
        return self.transfer.kind

    def sentences(self, rng: random.Random) -> list[str]:
        """Goods, both roles in one sentence or in two, money, and where and when."""
        roles = self.transfer
        goods = f"{self.count} {self.adjective.english} {self.thing.english_plural}"
        who = [f"The {roles.giver} was {self.giver}.", f"The {roles.taker} was {self.taker}."]
        if rng.random() < 0.5:
            who = [f"The {roles.giver} was {self.giver} and the {roles.taker} was {self.taker}."]
        money = rng.choice(("The {} was {} euros.", "They noted a {} of {} euros.")).format(roles.money, self.money)
        where = rng.choice(_WHERE_AND_WHEN).format(town=self.town, when=self.when)
        return [rng.choice(_GOODS).format(goods=goods), *who, money, where]

    def summary(self) -> str:
        """For example: X sold 23 old chairs to Y for 450 euros in Z on Monday."""
        roles = self.transfer
        goods = f"{self.count} {self.adjective.english} {self.thing.english_plural}"
        return (
            f"{self.giver} {roles.verb} {goods} {roles.preposition} {self.taker} "
            f"{roles.amount} {self.money} euros in {self.town} {self.when}."
        )


@dataclass(frozen=True, slots=True)
class Meeting:
    """A group under a chair decides to buy something."""

    chair: str
    count: int
    group: Noun
    thing: Noun
    money: int
    town: str
    when: str
    kind: str = "meeting"

    def sentences(self, rng: random.Random) -> list[str]:
        """Chair, group, plan with its budget, and where and when."""
        chair = rng.choice(("The chair was {}.", "{} led the discussion.")).format(self.chair)
        group = rng.choice(("There were {} {} in the room.", "The guests were {} {}."))
        plan = rng.choice(("They voted for new {}.", "The plan asked for {}.")).format(self.thing.english_plural)
        money = rng.choice(("The budget was {} euros.", "They set a budget of {} euros.")).format(self.money)
        where = rng.choice(_WHERE_AND_WHEN).format(town=self.town, when=self.when)
        return [chair, group.format(self.count, self.group.english_plural), plan, money, where]

    def summary(self) -> str:
        """For example: X and 14 bakers approved 450 euros for lamps in Z at 15:45."""
        return (
            f"{self.chair} and {self.count} {self.group.english_plural} approved {self.money} euros "
            f"for {self.thing.english_plural} in {self.town} {self.when}."
        )


@dataclass(frozen=True, slots=True)
class Match:
    """One town beats another."""

    winner: str
    loser: str
    goals: tuple[int, int]
    visitors: int
    scorer: str
    when: str
    kind: str = "match"
    thing: Noun | None = None

    def sentences(self, rng: random.Random) -> list[str]:
        """Teams, score, crowd, last goal, and when."""
        teams = [f"The winner was {self.winner}.", f"The team that lost was {self.loser}."]
        score = rng.choice(("The score was {} to {}.", "At the end it was {} to {}.")).format(*self.goals)
        crowd = rng.choice(("The crowd counted {} visitors.", "A crowd of {} visitors was there."))
        scorer = rng.choice(("The last goal came from {}.", "{} shot the last goal.")).format(self.scorer)
        return [*teams, score, crowd.format(self.visitors), scorer, f"The match was played {self.when}."]

    def summary(self) -> str:
        """For example: X beat Y 3 to 1 before 450 visitors on Sunday with a goal by Z."""
        first, second = self.goals
        return (
            f"{self.winner} beat {self.loser} {first} to {second} before {self.visitors} visitors "
            f"{self.when} with a goal by {self.scorer}."
        )


class Reporter:
    """Draws events and writes reports from one source of randomness and one pool of names."""

    def __init__(self, rng: random.Random, names: Names) -> None:
        self.rng = rng
        self.names = names

    def event(self) -> Event:
        """A transfer in four of five cases, else a meeting or a match."""
        draw = self.rng.random()
        if draw < 0.8:
            return self._transfer()
        return self._meeting() if draw < 0.9 else self._match()

    def report(self, event: Event) -> str:
        """The facts and one or two other sentences, in any order."""
        facts = event.sentences(self.rng)
        others = self.rng.sample(_DISTRACTORS, 1 if len(facts) > 5 else self.rng.randint(1, 2))
        sentences = facts + [self._distractor(other) for other in others]
        self.rng.shuffle(sentences)
        return " ".join(sentences)

    def _transfer(self) -> TransferEvent:
        rng = self.rng
        giver, taker = rng.sample(self.names.people, 2)
        return TransferEvent(
            rng.choice(TRANSFERS),
            giver.name,
            taker.name,
            rng.randint(2, 99),
            rng.choice(lexicon.THING_ADJECTIVES),
            rng.choice(lexicon.THINGS),
            self._amount(),
            rng.choice(self.names.towns),
            self._when(),
        )

    def _meeting(self) -> Meeting:
        rng = self.rng
        chair, town = rng.choice(self.names.people).name, rng.choice(self.names.towns)
        group, thing = rng.choice(lexicon.PERSONS), rng.choice(lexicon.THINGS)
        return Meeting(chair, rng.randint(2, 99), group, thing, self._amount(), town, self._when())

    def _match(self) -> Match:
        rng = self.rng
        winner, loser = rng.sample(self.names.towns, 2)
        goals = rng.randint(1, 6)
        scorer = rng.choice(self.names.people).name
        return Match(winner, loser, (goals, rng.randint(0, goals - 1)), self._amount(), scorer, self._when())

    def _amount(self) -> int:
        return self.rng.randint(100, 990)

    def _when(self) -> str:
        return f"on {self.rng.choice(lexicon.WEEKDAYS)[0]}" if self.rng.random() < 0.6 else f"at {self._clock()}"

    def _clock(self) -> str:
        return f"{self.rng.randint(6, 22)}:{self.rng.randint(0, 11) * 5:02d}"

    def _distractor(self, form: str) -> str:
        rng = self.rng
        person, place = rng.choice(lexicon.PERSONS).english, rng.choice(lexicon.PLACES).english
        return form.format(
            name=rng.choice(self.names.people).name,
            town=rng.choice(self.names.towns),
            a_person=f"{indefinite(person).capitalize()} {person}",
            a_place=f"{indefinite(place)} {place}",
            place=place,
            number=rng.randint(2, 990),
            things=rng.choice(lexicon.THINGS).english_plural,
            clock=self._clock(),
            adjective=rng.choice(("closed", "open", "empty", "full", "quiet")),
        )
