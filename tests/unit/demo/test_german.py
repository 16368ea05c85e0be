import pytest

from rnnlm.demo import german
from rnnlm.demo.lexicon import BE, COST, HAVE, MOTION, PERSONS, THING_ADJECTIVES, THINGS, TRANSITIVE

OLD = next(adjective for adjective in THING_ADJECTIVES if adjective.english == "old")


def verb(base):
    return next(verb for verb in (*TRANSITIVE, *MOTION) if verb.base == base)


@pytest.mark.parametrize(
    ("english", "case", "forms"),
    [
        ("the", "nom", "der alte|die alte|das alte|die alten"),
        ("the", "acc", "den alten|die alte|das alte|die alten"),
        ("the", "dat", "dem alten|der alten|dem alten|den alten"),
        ("a", "nom", "ein alter|eine alte|ein altes"),
        ("a", "acc", "einen alten|eine alte|ein altes"),
        ("a", "dat", "einem alten|einer alten|einem alten"),
        ("no", "acc", "keinen alten|keine alte|kein altes|keine alten"),
        ("our", "acc", "unseren alten|unsere alte|unser altes|unsere alten"),
        ("her", "dat", "ihrem alten|ihrer alten|ihrem alten|ihren alten"),
        ("this", "acc", "diesen alten|diese alte|dieses alte"),
        ("these", "dat", "-|-|-|diesen alten"),
        ("many", "dat", "-|-|-|vielen alten"),
        ("some", "acc", "-|-|-|einige alte"),
        ("three", "acc", "-|-|-|drei alte"),
        ("250", "dat", "-|-|-|250 alten"),
    ],
)
def test_articles_and_adjectives_agree(english, case, forms):
    for gender, expected in zip("mfnp", forms.split("|"), strict=False):
        if expected != "-":
            found = f"{german.determiner(english, case, gender)} {german.inflect(OLD, english, case, gender)}"
            assert found == expected


def test_bare_plurals_take_strong_endings():
    assert german.inflect(OLD, "", "acc", "p") == "alte"


def test_a_stem_in_e_does_not_double_it():
    tired = german.Adjective("tired", "müde")
    assert german.inflect(tired, "a", "nom", "m") == "müder"


@pytest.mark.parametrize(
    ("english", "dative"),
    [("table", "Tischen"), ("lamp", "Lampen"), ("car", "Autos"), ("child", "Kindern"), ("key", "Schlüsseln")],
)
def test_dative_plural(english, dative):
    noun = next(noun for noun in (*THINGS, *PERSONS) if noun.english == english)
    assert german.noun_form(noun, "dat", plural=True) == dative
    assert german.noun_form(noun, "acc", plural=True) == noun.german_plural
    assert german.noun_form(noun, "dat", plural=False) == noun.german


@pytest.mark.parametrize(
    ("english", "forms"), [("he", "er ihn ihm"), ("she", "sie sie ihr"), ("it", "es es ihm"), ("they", "sie sie ihnen")]
)
def test_pronouns(english, forms):
    assert [german.pronoun(english, case) for case in ("nom", "acc", "dat")] == forms.split()


def test_prepositions_are_drawn_together_with_the_definite_article():
    assert german.contract("in", ["dem", "Garten"]) == ["im", "Garten"]
    assert german.contract("zu", ["der", "Kirche"]) == ["zur", "Kirche"]
    assert german.contract("hinter", ["dem", "Haus"]) == ["hinter", "dem", "Haus"]
    assert german.contract("zu", ["einem", "Haus"]) == ["zu", "einem", "Haus"]


@pytest.mark.parametrize(
    ("base", "tense", "plural", "main", "final"),
    [
        ("find", "present", False, "findet", "findet"),
        ("find", "present", True, "finden", "finden"),
        ("find", "past", False, "hat gefunden", "gefunden hat"),
        ("find", "must", True, "müssen finden", "finden müssen"),
        ("pick up", "present", False, "holt ab", "abholt"),
        ("pick up", "present", True, "holen ab", "abholen"),
        ("pick up", "past", True, "haben abgeholt", "abgeholt haben"),
        ("pick up", "future", False, "wird abholen", "abholen wird"),
        ("drive", "past", False, "ist gefahren", "gefahren ist"),
        ("drive", "past", True, "sind gefahren", "gefahren sind"),
        ("drive", "want", False, "möchte fahren", "fahren möchte"),
    ],
)
def test_predicates_of_main_and_subordinate_clauses(base, tense, plural, main, final):
    finite, closing, last = german.predicate(verb(base), tense, plural)
    assert " ".join([finite, *closing]) == main
    assert " ".join(last) == final


def test_sein_and_haben_have_a_preterite():
    assert german.predicate(BE, "past", plural=False) == ("war", [], ["war"])
    assert german.predicate(BE, "past", plural=True) == ("waren", [], ["waren"])
    assert german.predicate(HAVE, "past", plural=True) == ("hatten", [], ["hatten"])
    assert german.predicate(BE, "present", plural=True)[0] == "sind"
    assert german.predicate(COST, "past", plural=False)[:2] == ("hat", ["gekostet"])
