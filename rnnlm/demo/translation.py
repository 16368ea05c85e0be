"""The synthetic English-German corpus: made by a grammar, not written by people.

Every target is a function of its source, so that one answer is right. What makes the task a task: rare names, numbers,
times and prices that have to be carried over, agreement, and the German order of words.
"""

import random
from functools import cache

from rnnlm.demo import lexicon
from rnnlm.demo.grammar import Sentence
from rnnlm.demo.names import names
from rnnlm.demo.phrases import NounPhrase
from rnnlm.demo.plans import Planner
from rnnlm.demo.splits import SEED, Part, Row, Split, any_withheld, draw_parts, wants_combination, wants_names, withheld

_WORDS = range(5, 17)
_THINGS = frozenset(lexicon.THINGS)
_NO_COMBINATION = (lexicon.BE, lexicon.HAVE, lexicon.COST)


def rows(split: Split) -> list[Row]:
    """Rows of a split: `id`, `source` (English), `target` (German), `tags` (phenomena, joined by commas)."""
    return [dict(row) for row in _corpus()[split]]


def new_inputs() -> list[str]:
    """English sentences that are in no split."""
    return [row["source"] for row in _corpus()["new"]]


def combinations(sentence: Sentence) -> list[tuple[str, str]]:
    """The verb and the thing that is its direct object, of each clause that has both ("to have" apart)."""
    return [
        (clause.verb.base, clause.accusative.noun.english)
        for clause in sentence.clauses()
        if isinstance(clause.accusative, NounPhrase)
        and clause.accusative.noun in _THINGS
        and clause.verb not in _NO_COMBINATION
    ]


@cache
def _corpus() -> dict[Part, list[Row]]:
    """All parts; none repeats a source of another."""
    return draw_parts(_draw)


def _draw(split: Part, size: int, taken: set[str]) -> list[Row]:
    rng = random.Random(f"{SEED}/translation/{split}")
    planners = {True: Planner(rng, names(split)), False: Planner(rng, names("train"))}
    found: list[Row] = []
    while len(found) < size:
        own_names, combined = wants_names(split, len(found)), wants_combination(split, len(found))
        sentence = planners[own_names].sentence()
        if not _fits(sentence, combined):
            continue
        source, target, tags = sentence.english(), sentence.german(), sentence.tags()
        if source in taken or (own_names and "name" not in tags):
            continue
        if len(source.split()) not in _WORDS or len(target.split()) not in _WORDS:
            continue
        taken.add(source)
        marks = {"unseen_combination": combined, "unseen_name": own_names}
        tags |= {mark for mark, holds in marks.items() if holds}
        row_id = f"translation-{split}-{len(found):05d}"
        found.append({"id": row_id, "source": source, "target": target, "tags": ",".join(sorted(tags))})
    return found


def _fits(sentence: Sentence, combined: bool) -> bool:
    """Whether a sentence has a withheld combination of verb and object, or, if it should not, none at all.

    The second is meant strictly: no verb of the sentence is kept apart from any thing in it, in whichever clause.
    """
    if combined:
        return any(withheld(verb, noun) for verb, noun in combinations(sentence))
    clauses = sentence.clauses()
    phrases = [phrase for clause in clauses for phrase in (clause.subject, clause.accusative)]
    nouns = [phrase.noun.english for phrase in phrases if isinstance(phrase, NounPhrase) and phrase.noun in _THINGS]
    verbs = [clause.verb.base for clause in clauses if clause.verb not in _NO_COMBINATION]
    return not any_withheld(verbs, nouns)
