import pytest

from rnnlm.demo import lexicon
from rnnlm.demo.grammar import Clause, Sentence
from rnnlm.demo.names import Person
from rnnlm.demo.phrases import Adverbial, NamePhrase, NounPhrase, Prepositional, Pronoun, indefinite, pronoun_for

LISTS = {
    name: {entry.english if hasattr(entry, "english") else entry.base: entry for entry in value}
    for name, value in vars(lexicon).items()
    if name.isupper() and isinstance(value, tuple) and hasattr(value[0], "__slots__")
}
MIRA, TOVAN = Person("Mira", female=True), Person("Tovan", female=False)
MONDAY, CLOCK = Adverbial("on Monday", "am Montag"), Adverbial("at 9:05", "um 9.05 Uhr", "time")


def thing(word, determiner="the", *, plural=False, adjective=None):
    found = LISTS["THING_ADJECTIVES"][adjective] if adjective else None
    return NounPhrase(LISTS["THINGS"][word], determiner, plural, found)


def person(word, determiner="the", *, plural=False, adjective=None):
    found = LISTS["PERSON_ADJECTIVES"][adjective] if adjective else None
    return NounPhrase(LISTS["PERSONS"][word], determiner, plural, found)


def name(*people):
    return NamePhrase(people or (MIRA,))


BUY, HIDE, TAKE_ALONG = LISTS["TRADE"]["buy"], LISTS["TRANSITIVE"]["hide"], LISTS["TRANSITIVE"]["take along"]
SENTENCES = [
    (
        Sentence(Clause(name(), BUY, "past", accusative=thing("lamp", "a", adjective="old"), price="12.50")),
        "Mira bought an old lamp for 12.50 euros.",
        "Mira hat eine alte Lampe für 12,50 Euro gekauft.",
        {"name", "accusative", "adjective", "price", "perfect"},
    ),
    (
        Sentence(Clause(name(), TAKE_ALONG, "present", accusative=thing("chair"), times=(MONDAY, CLOCK), fronted=True)),
        "On Monday at 9:05 Mira takes along the chair.",
        "Am Montag um 9.05 Uhr nimmt Mira den Stuhl mit.",
        {"name", "accusative", "inversion", "separable", "time"},
    ),
    (
        Sentence(
            Clause(
                person("child", "my"),
                LISTS["DITRANSITIVE"]["give"],
                "want",
                dative=person("neighbour", "our", adjective="old"),
                accusative=thing("book", "250", plural=True),
                times=(MONDAY,),
            )
        ),
        "My child wants to give our old neighbour 250 books on Monday.",
        "Mein Kind möchte am Montag unserer alten Nachbarin 250 Bücher geben.",
        {"dative", "accusative", "modal", "number", "plural", "adjective"},
    ),
    (
        Sentence(
            Clause(name(), LISTS["PERSONAL"]["invite"], "future", accusative=person("guest", "some", plural=True)),
            "because",
            Clause(Pronoun("she", "she"), LISTS["DATIVE"]["help"], "present", dative=Pronoun("they", "they")),
        ),
        "Mira will invite some guests because she helps them.",
        "Mira wird einige Gäste einladen, weil sie ihnen hilft.",
        {"name", "accusative", "plural", "future", "separable", "verb_final", "pronoun", "dative"},
    ),
    (
        Sentence(
            Clause(Pronoun("he", "he"), HIDE, "past", accusative=pronoun_for(thing("key"))),
            "before",
            Clause(name(TOVAN), TAKE_ALONG, "past", accusative=thing("key", "his")),
            link_first=True,
        ),
        "Before Tovan took along his key, he hid it.",
        "Bevor Tovan seinen Schlüssel mitgenommen hat, hat er ihn versteckt.",
        {"name", "accusative", "perfect", "separable", "pronoun", "verb_final", "inversion"},
    ),
    (
        Sentence(
            Clause(
                name(MIRA, TOVAN),
                LISTS["MOTION"]["drive"],
                "past",
                company=Prepositional("with", "mit", "dat", person("teacher", plural=True)),
                place=Prepositional("to", "nach", "dat", "Velmar"),
                times=(MONDAY,),
            ),
            "but",
            Clause(thing("car", "this"), lexicon.BE, "past", quality=LISTS["THING_ADJECTIVES"]["old"], times=(MONDAY,)),
        ),
        "Mira and Tovan drove with the teachers to Velmar on Monday, but this car was old on Monday.",
        "Mira und Tovan sind am Montag mit den Lehrern nach Velmar gefahren, aber dieses Auto war am Montag alt.",
        {"name", "dative", "plural", "perfect"},
    ),
    (
        Sentence(
            Clause(Pronoun("we", "we"), LISTS["SAYING"]["say"], "present"),
            "that",
            Clause(thing("horse", plural=True), lexicon.COST, "present", price="80.20"),
        ),
        "We say that the horses cost 80.20 euros.",
        "Wir sagen, dass die Pferde 80,20 Euro kosten.",
        {"pronoun", "plural", "price", "verb_final"},
    ),
    (
        Sentence(
            Clause(Pronoun("they", "they"), lexicon.BE, "present", quality=person("guest", "some", plural=True)),
            "and",
            Clause(
                name(),
                LISTS["INTRANSITIVE"]["sleep"],
                "can",
                place=Prepositional("in", "in", "dat", NounPhrase(LISTS["PLACES"]["garden"], "the")),
            ),
        ),
        "They are some guests and Mira can sleep in the garden.",
        "Sie sind einige Gäste und Mira kann im Garten schlafen.",
        {"pronoun", "plural", "name", "modal", "dative"},
    ),
]


@pytest.mark.parametrize(("sentence", "english", "german", "tags"), SENTENCES)
def test_sentences_are_right_in_both_languages(sentence, english, german, tags):
    assert sentence.english() == english
    assert sentence.german() == german
    assert sentence.tags() == tags


def test_past_of_plural_subjects():
    clause = Clause(Pronoun("they", "they"), lexicon.BE, "past", quality=LISTS["PERSON_ADJECTIVES"]["ill"])
    assert Sentence(clause).english() == "They were ill."
    assert Sentence(clause).german() == "Sie waren krank."


@pytest.mark.parametrize(
    ("word", "article"),
    [("old", "an"), ("useful", "a"), ("honest", "an"), ("university", "a"), ("umbrella", "an"), ("hut", "a")],
)
def test_indefinite_article(word, article):
    assert indefinite(word) == article


@pytest.mark.parametrize(
    ("phrase", "english", "german"),
    [
        (thing("table"), "it", "ihn"),
        (thing("lamp"), "it", "sie"),
        (thing("book"), "it", "es"),
        (thing("book", plural=True), "them", "sie"),
        (person("teacher"), "him", "ihn"),
        (person("nurse"), "her", "sie"),
        (person("child"), "it", "es"),
        (name(TOVAN), "him", "ihn"),
        (name(MIRA), "her", "sie"),
        (name(MIRA, TOVAN), "them", "sie"),
        (Pronoun("we", "we"), "us", "uns"),
    ],
)
def test_pronouns_take_the_gender_of_the_german_noun(phrase, english, german):
    pronoun = pronoun_for(phrase)
    assert pronoun.english() == [english]
    assert pronoun.german("acc") == [german]


def test_names_do_not_show_a_case():
    assert Prepositional("with", "mit", "dat", name()).tags() == {"name"}
    assert Prepositional("for", "für", "acc", Pronoun("he", "he")).tags() == {"pronoun", "accusative"}
