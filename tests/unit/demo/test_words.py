from collections import Counter

import pytest

from rnnlm.demo import lexicon
from rnnlm.demo.lexicon import Adjective, Noun, Verb, all_words
from rnnlm.demo.names import names

NOUNS = [*lexicon.PERSONS, *lexicon.THINGS, *lexicon.PLACES]
VERB_LISTS = ("TRADE", "TRANSITIVE", "PERSONAL", "DATIVE", "DITRANSITIVE", "MOTION", "INTRANSITIVE", "SAYING")
VERBS = [verb for name in VERB_LISTS for verb in getattr(lexicon, name)]


def english(entry):
    return entry.base if isinstance(entry, Verb) else entry.english


def test_an_english_word_has_one_german_counterpart():
    assert max(Counter(english(noun) for noun in NOUNS).values()) == 1
    assert max(Counter(verb.base for verb in VERBS).values()) == 1
    adjectives = {(a.english, a.german) for a in (*lexicon.THING_ADJECTIVES, *lexicon.PERSON_ADJECTIVES)}
    assert max(Counter(word for word, _ in adjectives).values()) == 1


def test_german_nouns_are_capitalised_and_nothing_else_is():
    assert all(noun.german[0].isupper() and noun.german_plural[0].isupper() for noun in NOUNS)
    assert all(verb.infinitive.islower() and verb.participle.islower() for verb in VERBS)


def test_gender_follows_the_endings_that_fix_it():
    for noun in NOUNS:
        if noun.german_plural.endswith("innen") or noun.german.endswith(("ung", "tät", "erei")):
            assert noun.gender == "f", noun
        if noun.german.endswith("er") and noun.german_plural == noun.german and noun.english != "window":
            assert noun.gender in ("m", "n"), noun


def test_participles_carry_the_prefix_and_infinitives_end_in_n():
    for verb in VERBS:
        assert verb.participle.startswith(verb.prefix)
        assert verb.infinitive.endswith("n")
        assert not verb.present.startswith(verb.prefix + "ge") or not verb.prefix
        assert verb.plural == verb.infinitive


def test_movement_takes_sein():
    assert all(verb.auxiliary == "sein" for verb in lexicon.MOTION)
    assert all(verb.auxiliary == "haben" for verb in (*lexicon.TRANSITIVE, *lexicon.PERSONAL, *lexicon.DITRANSITIVE))


def test_no_noun_of_the_weak_declension():
    weak = {"Kunde", "Nachbar", "Junge", "Herr", "Student", "Kollege", "Bauer", "Mensch", "Held", "Bär", "Affe", "Löwe"}
    assert not weak & {noun.german for noun in NOUNS}


def test_entries_are_typed():
    assert all(isinstance(noun, Noun) and noun.gender in "mfn" for noun in NOUNS)
    assert all(isinstance(adjective, Adjective) for adjective in lexicon.THING_ADJECTIVES)
    assert next(verb for verb in VERBS if verb.base == "pick up").phrasal


@pytest.mark.parametrize("kind", ["people", "towns"])
def test_pools_of_names_are_disjoint_and_no_words(kind):
    spelt = [
        getattr(entry, "name", entry)
        for pool in ("train", "valid", "test", "new")
        for entry in getattr(names(pool), kind)
    ]
    assert len(spelt) == len(set(spelt))
    assert not {word.lower() for word in spelt} & all_words()
    assert all(word.isalpha() and word.isascii() and word.istitle() for word in spelt)


def test_people_and_towns_share_no_name():
    pools = [names(pool) for pool in ("train", "valid", "test", "new")]
    assert not {person.name for pool in pools for person in pool.people} & {
        town for pool in pools for town in pool.towns
    }


def test_female_names_end_in_a():
    assert all(person.female == person.name.endswith("a") for person in names("train").people)
