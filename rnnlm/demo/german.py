"""German inflection and word order, as far as the synthetic corpus needs it.

Cases are `nom`, `acc`, `dat`; genders `m`, `f`, `n`, and `p` for the plural of all three. Tables give endings in the
order m, f, n, p.
"""

from typing import Literal

from rnnlm.demo.lexicon import NUMBER_WORDS, Adjective, Noun, Verb

Case = Literal["nom", "acc", "dat"]
Tense = Literal["present", "past", "future", "can", "must", "should", "want"]

_DEFINITE = {"nom": "der die das die", "acc": "den die das die", "dat": "dem der dem den"}
_DIESER = {"nom": "er e es e", "acc": "en e es e", "dat": "em er em en"}
_EIN = {"nom": "- e - e", "acc": "en e - e", "dat": "em er em en"}
_WEAK = {"nom": "e e e en", "acc": "en e e en", "dat": "en en en en"}
_MIXED = {"nom": "er e es en", "acc": "en e es en", "dat": "en en en en"}
_STRONG_PLURAL = {"nom": "e", "acc": "e", "dat": "en"}
_EIN_WORDS = {
    "a": "ein",
    "an": "ein",
    "no": "kein",
    "my": "mein",
    "his": "sein",
    "her": "ihr",
    "our": "unser",
    "their": "ihr",
}
_QUANTITIES = {"many": "viel", "some": "einig"}
_NUMBERS = dict(NUMBER_WORDS)
_CONTRACTIONS = {"in dem": "im", "zu dem": "zum", "zu der": "zur", "von dem": "vom"}
_MODALS = {
    "future": ("wird", "werden"),
    "can": ("kann", "können"),
    "must": ("muss", "müssen"),
    "should": ("soll", "sollen"),
    "want": ("möchte", "möchten"),
}
_PRONOUNS = {
    "he": {"nom": "er", "acc": "ihn", "dat": "ihm"},
    "she": {"nom": "sie", "acc": "sie", "dat": "ihr"},
    "it": {"nom": "es", "acc": "es", "dat": "ihm"},
    "they": {"nom": "sie", "acc": "sie", "dat": "ihnen"},
    "we": {"nom": "wir", "acc": "uns", "dat": "uns"},
}


def _ending(table: dict[str, str], case: Case, gender: str) -> str:
    return table[case].split()["mfnp".index(gender)].strip("-")


def pronoun(english: str, case: Case) -> str:
    """A personal pronoun, named by its English nominative."""
    return _PRONOUNS[english][case]


def determiner(english: str, case: Case, gender: str) -> str:
    """The form of an article, possessive, demonstrative or quantity; digits stay as they are."""
    if english == "the":
        return _ending(_DEFINITE, case, gender)
    if english in ("this", "these"):
        return "dies" + _ending(_DIESER, case, gender)
    if english in _EIN_WORDS:
        return _EIN_WORDS[english] + _ending(_EIN, case, gender)
    if english in _QUANTITIES:
        return _QUANTITIES[english] + _STRONG_PLURAL[case]
    return _NUMBERS.get(english, english)


def inflect(adjective: Adjective, english_determiner: str, case: Case, gender: str) -> str:
    """An adjective before a noun: weak after der, mixed after ein, strong (plural only) after the rest."""
    if english_determiner in ("the", "this", "these"):
        ending = _ending(_WEAK, case, gender)
    elif english_determiner in _EIN_WORDS:
        ending = _ending(_MIXED, case, gender)
    else:
        ending = _STRONG_PLURAL[case]
    return adjective.german.removesuffix("e") + ending


def noun_form(noun: Noun, case: Case, plural: bool) -> str:
    """A noun in its case; only the dative plural differs from the nominative."""
    if not plural:
        return noun.german
    form = noun.german_plural
    return form if case != "dat" or form.endswith(("n", "s")) else form + "n"


def contract(preposition: str, phrase: list[str]) -> list[str]:
    """A preposition with its phrase, drawn together with the article where German does so (in dem: im)."""
    short = _CONTRACTIONS.get(f"{preposition} {phrase[0]}")
    return [short, *phrase[1:]] if short else [preposition, *phrase]


def predicate(verb: Verb, tense: Tense, plural: bool) -> tuple[str, list[str], list[str]]:
    """The verb's parts: finite form, what closes a main clause, and what closes a verb-final clause.

    The past is the perfect (hat gesehen), except for sein and haben (war, hatte). In a verb-final clause a separable
    verb is written as one word, and the finite form comes last.
    """
    joined = verb.prefix + verb.infinitive
    if tense == "present":
        finite = verb.plural if plural else verb.present
        return finite, [verb.prefix] if verb.prefix else [], [verb.prefix + finite]
    if tense == "past" and verb.preterite:
        finite = _plural_preterite(verb.preterite) if plural else verb.preterite
        return finite, [], [finite]
    if tense == "past":
        forms = ("ist", "sind") if verb.auxiliary == "sein" else ("hat", "haben")
        return forms[plural], [verb.participle], [verb.participle, forms[plural]]
    finite = _MODALS[tense][plural]
    return finite, [joined], [joined, finite]


def _plural_preterite(singular: str) -> str:
    return singular + ("n" if singular.endswith("e") else "en")
