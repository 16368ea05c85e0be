from rnnlm.evaluation.dictionary import TokenDictionary, learn_dictionary

PAIRS = [
    ("das haus ist rot .", "the house is red ."),
    ("das haus ist alt .", "the house is old ."),
    ("das buch ist alt .", "the book is old ."),
    ("ein buch", "a book"),
    ("ein haus", "a house"),
    ("rot .", "red ."),
]


def test_learns_word_pairs_that_only_context_tells_apart():
    entries = learn_dictionary(PAIRS).entries
    expected = {"das": "the", "haus": "house", "rot": "red", "alt": "old", "buch": "book", "ein": "a", ".": "."}
    assert {word: entries[word] for word in expected} == expected


def test_translates_in_place_and_copies_what_it_does_not_know():
    dictionary = TokenDictionary({"haus": "house", "rot": "red", "x": r"\1"})
    assert dictionary.translate("haus,  rot (Zimmer 3)!") == "house,  red (Zimmer 3)!"
    assert dictionary.translate("x") == r"\1"
    assert dictionary.translate("") == ""


def test_a_large_corpus_is_thinned_evenly():
    whole = learn_dictionary(PAIRS * 20)
    thinned = learn_dictionary(PAIRS * 20, max_links=600)
    assert thinned.entries != {}
    assert set(thinned.entries) <= set(whole.entries)


def test_corpora_without_words_give_an_empty_dictionary():
    assert learn_dictionary([]).entries == {}
    assert learn_dictionary([("", ""), ("a", "")]).entries == {}
    # Without source words only the empty word explains the target, and it is no entry.
    assert learn_dictionary([("", "a b")]).entries == {}


def test_ties_go_to_the_word_that_came_first():
    assert learn_dictionary([("s", "second first")]).entries == {"s": "second"}
