import random
import re
from collections import Counter, defaultdict
from functools import cache
from itertools import pairwise

import pytest
import sacrebleu

from rnnlm.demo import lexicon, translation
from rnnlm.demo.names import names
from rnnlm.demo.plans import Planner
from rnnlm.demo.splits import withheld

ROWS = {split: translation.rows(split) for split in ("train", "valid", "test")}
THINGS = {form: noun.english for noun in lexicon.THINGS for form in (noun.english, noun.english_plural)}
OBJECT_VERBS = (*lexicon.TRADE, *lexicon.TRANSITIVE, *lexicon.DITRANSITIVE)


def words(text):
    return re.findall(r"[\w.:]*\w", text)


def tagged(split, tag):
    return [row for row in ROWS[split] if tag in row["tags"].split(",")]


@cache
def name_pool(pool):
    return {person.name for person in names(pool).people} | set(names(pool).towns)


def test_sizes_and_keys():
    assert {split: len(found) for split, found in ROWS.items()} == {"train": 22_000, "valid": 510, "test": 1_020}
    assert all(list(row) == ["id", "source", "target", "tags"] for found in ROWS.values() for row in found)


def test_no_source_comes_twice_in_all_splits_and_the_new_inputs():
    sources = [row["source"] for found in ROWS.values() for row in found] + translation.new_inputs()
    assert len(sources) == len(set(sources))
    ids = [row["id"] for found in ROWS.values() for row in found]
    assert len(ids) == len(set(ids))


def test_at_least_600_word_types_a_side_without_names_and_numbers():
    known = {name.lower() for name in name_pool("train")}
    for side in ("source", "target"):
        types = {word.lower() for row in ROWS["train"] for word in words(row[side])}
        assert len([word for word in types if word.isalpha() and word not in known]) >= 600


def test_sentences_have_5_to_16_words():
    lengths = [len(row[side].split()) for row in ROWS["train"] for side in ("source", "target")]
    assert (min(lengths), max(lengths)) == (5, 16)


def test_a_third_has_unseen_combinations_and_a_tenth_unseen_names():
    for split in ("valid", "test"):
        assert 3 * len(tagged(split, "unseen_combination")) == len(ROWS[split])
        assert 10 * len(tagged(split, "unseen_name")) == len(ROWS[split])
    assert not tagged("train", "unseen_combination")
    assert not tagged("train", "unseen_name")


VERB_FORMS = {form: verb.base for verb in OBJECT_VERBS for form in (verb.base, verb.third, verb.past)}


def pairs_of(source):
    """Every object verb of a source with every thing in it, found by the words alone."""
    found = words(source.lower())
    forms = [*found, *(f"{first} {second}" for first, second in pairwise(found))]
    nouns = {THINGS[word] for word in found if word in THINGS}
    return {(VERB_FORMS[form], noun) for form in forms if form in VERB_FORMS for noun in nouns}


def test_withheld_combinations_are_in_no_training_row():
    planner = Planner(random.Random(0), names("train"))
    share = Counter(withheld(*pair) for _ in range(2_000) for pair in translation.combinations(planner.sentence()))
    assert 0.08 < share[True] / share.total() < 0.17
    seen = {pair for row in ROWS["train"] for pair in pairs_of(row["source"])}
    for row in tagged("test", "unseen_combination"):
        assert any(withheld(*pair) for pair in pairs_of(row["source"])), row
        assert pairs_of(row["source"]) - seen, row


def test_other_held_out_rows_have_no_withheld_combination():
    others = [row for row in ROWS["test"] if "unseen_combination" not in row["tags"]]
    found = {pair for row in others for pair in pairs_of(row["source"])}
    assert not [pair for pair in found if withheld(*pair)]


def test_unseen_names_are_in_no_training_row_and_the_other_rows_have_none():
    train = {word for row in ROWS["train"] for word in words(row["source"])}
    for split in ("valid", "test"):
        for row in ROWS[split]:
            own = {word for word in words(row["source"]) if word in name_pool(split)}
            assert bool(own) == ("unseen_name" in row["tags"]), row
            assert not own & train


def test_names_numbers_and_formats_are_carried_over():
    known = name_pool("train") | name_pool("test")
    for row in ROWS["test"]:
        source, target = words(row["source"]), words(row["target"])
        carried = [word for word in source if word in known]
        assert Counter(carried) == Counter(word for word in target if word in carried)
        for price in re.findall(r"(\d+)\.(\d\d) euros", row["source"]):
            assert "{},{} Euro".format(*price) in row["target"]
        for time in re.findall(r"at (\d+):(\d\d)", row["source"]):
            assert "um {}.{} Uhr".format(*time) in row["target"]


def test_every_phenomenon_has_rows_to_learn_from_and_to_test():
    phenomena = "accusative adjective dative future inversion modal name number perfect plural price pronoun separable"
    phenomena += " time verb_final"
    for tag in phenomena.split():
        assert len(tagged("train", tag)) >= 900, tag
        assert len(tagged("test", tag)) >= 30, tag


def test_german_word_order():
    for row in tagged("train", "verb_final")[:2_000]:
        assert ", " in row["target"], row
        if row["target"].startswith(("Weil ", "Obwohl ", "Wenn ", "Während ", "Bevor ")):
            assert row["target"].count(",") - len(re.findall(r"\d,\d", row["target"])) == 1


def test_articles_fit_the_gender_of_the_noun_that_follows():
    singular = {noun.german: noun.gender for noun in (*lexicon.PERSONS, *lexicon.THINGS, *lexicon.PLACES)}
    both = {noun.german for noun in (*lexicon.PERSONS, *lexicon.THINGS) if noun.german == noun.german_plural}
    fits = {
        "den": "m",
        "dem": "mn",
        "einen": "m",
        "einem": "mn",
        "eine": "f",
        "einer": "f",
        "das": "n",
        "im": "mn",
        "zum": "mn",
        "zur": "f",
    }
    checked = Counter()
    for row in ROWS["train"]:
        found = row["target"].rstrip(".").replace(",", "").split()
        for article, noun in pairwise(found):
            if article.lower() in fits and noun in singular and noun not in both:
                assert singular[noun] in fits[article.lower()], row
                checked[article.lower()] += 1
    assert min(checked[article] for article in fits) > 30


def test_the_target_is_a_function_of_the_source():
    targets = defaultdict(set)
    planner = Planner(random.Random(1), names("train"))
    for _ in range(6_000):
        sentence = planner.sentence()
        targets[sentence.english()].add(sentence.german())
    assert max(len(found) for found in targets.values()) == 1


def dictionary(rows):
    """For each source word the target word that it shares most rows with, by Dice's coefficient."""
    left, right, both = Counter(), Counter(), Counter()
    for row in rows:
        sources, targets = set(cut(row["source"])), set(cut(row["target"]))
        left.update(sources)
        right.update(targets)
        both.update((source, target) for source in sources for target in targets)
    best = {}
    for (source, target), count in both.items():
        score = 2 * count / (left[source] + right[target])
        best[source] = max(best.get(source, (0.0, source)), (score, target))
    return {source: target for source, (_, target) in best.items()}


def cut(text):
    return re.sub(r"([,.])(?=\s|$)", r" \1", text).split()


@pytest.mark.parametrize(("baseline", "bound"), [("copy", 5), ("dictionary", 50)])
def test_trivial_baselines_stay_low(baseline, bound):
    sources, references = ([row[side] for row in ROWS["test"]] for side in ("source", "target"))
    table = dictionary(ROWS["train"][:6_000]) if baseline == "dictionary" else {}
    guesses = [re.sub(r" ([,.])", r"\1", " ".join(table.get(word, word) for word in cut(text))) for text in sources]
    assert sacrebleu.corpus_bleu(guesses, [references]).score <= bound


def test_rows_are_copies():
    translation.rows("valid")[0]["source"] = "changed"
    assert translation.rows("valid")[0]["source"] != "changed"
