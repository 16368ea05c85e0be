import random
import re
from statistics import mean

import pytest
from rouge_score import rouge_scorer

from rnnlm.demo import lexicon, summarization
from rnnlm.demo.lexicon import PERSONS, THING_ADJECTIVES, THINGS
from rnnlm.demo.names import names
from rnnlm.demo.reports import TRANSFERS, Match, Meeting, Reporter, TransferEvent
from rnnlm.demo.splits import withheld

ROWS = {split: summarization.rows(split) for split in ("train", "valid", "test")}
PLURALS = {noun.english_plural: noun.english for noun in THINGS}
SCORER = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


def sentences(source):
    return re.split(r"(?<=\.) ", source)


def rouge(target, guess):
    return 100 * SCORER.score(target, guess)["rougeL"].fmeasure


def tagged(split, tag):
    return [row for row in ROWS[split] if tag in row["tags"].split(",")]


def test_sizes_keys_and_lengths():
    assert {split: len(found) for split, found in ROWS.items()} == {"train": 22_000, "valid": 510, "test": 1_020}
    assert all(list(row) == ["id", "source", "target", "tags"] for found in ROWS.values() for row in found)
    lengths = [len(row["source"].split()) for row in ROWS["train"]]
    assert min(lengths) >= 35
    assert max(lengths) <= 60
    assert {len(sentences(row["source"])) for row in ROWS["train"]} <= {4, 5, 6, 7}


def test_no_report_and_no_summary_comes_twice():
    for side in ("source", "target"):
        found = [row[side] for rows in ROWS.values() for row in rows]
        assert len(found) == len(set(found))
    assert not {row["source"] for rows in ROWS.values() for row in rows} & set(summarization.new_inputs())
    assert len(set(summarization.new_inputs())) == 40


def test_a_third_has_unseen_combinations_and_a_tenth_unseen_names():
    for split in ("valid", "test"):
        assert 3 * len(tagged(split, "unseen_combination")) == len(ROWS[split])
        assert 10 * len(tagged(split, "unseen_name")) == len(ROWS[split])
    assert not tagged("train", "unseen_combination")
    assert not tagged("train", "unseen_name")


def combination(row):
    """The kind of event and the thing of the summary, found by the words alone."""
    kinds = {transfer.kind for transfer in TRANSFERS} | {"meeting"}
    kind = next((tag for tag in row["tags"].split(",") if tag in kinds), None)
    thing = next((PLURALS[word] for word in row["target"].split() if word in PLURALS), None)
    return (kind, thing) if kind and thing else None


def test_withheld_combinations_are_in_no_training_row():
    train = {combination(row) for row in ROWS["train"]}
    for row in ROWS["test"]:
        found = combination(row)
        assert (found is not None and withheld(*found)) == ("unseen_combination" in row["tags"])
        assert "unseen_combination" not in row["tags"] or found not in train


def test_unseen_names_are_in_no_training_row():
    pool = {person.name for person in names("test").people} | set(names("test").towns)
    train = {word.strip(".") for row in ROWS["train"] for word in row["source"].split()}
    assert not pool & train
    for row in ROWS["test"]:
        own = {word.strip(".") for word in row["target"].split()} & pool
        assert bool(own) == ("unseen_name" in row["tags"])


def test_every_fact_of_a_summary_stands_in_its_report():
    for row in ROWS["test"]:
        source = {word.strip(".") for word in row["source"].split()}
        facts = [word.strip(".") for word in row["target"].split()]
        assert {word for word in facts if word[0].isdigit() or word.istitle()} <= source, row


def test_one_sentence_of_the_report_is_not_enough():
    scores = [[rouge(row["target"], one) for one in sentences(row["source"])] for row in ROWS["test"][:300]]
    assert mean(found[0] for found in scores) <= mean(max(found) for found in scores) <= 50


TABLES = next(noun for noun in THINGS if noun.english == "table")
BAKERS = next(noun for noun in PERSONS if noun.english == "baker")
OLD = next(adjective for adjective in THING_ADJECTIVES if adjective.english == "old")
EVENTS = [
    (
        TransferEvent(TRANSFERS[0], "Mira", "Tovan", 23, OLD, TABLES, 450, "Velmar", "on Monday"),
        "Mira sold 23 old tables to Tovan for 450 euros in Velmar on Monday.",
    ),
    (
        TransferEvent(TRANSFERS[3], "Mira", "Tovan", 5, OLD, TABLES, 700, "Velmar", "at 9:05"),
        "Mira stole 5 old tables from Tovan worth 700 euros in Velmar at 9:05.",
    ),
    (
        Meeting("Mira", 14, BAKERS, TABLES, 450, "Velmar", "on Monday"),
        "Mira and 14 bakers approved 450 euros for tables in Velmar on Monday.",
    ),
    (
        Match("Velmar", "Dorten", (3, 1), 450, "Mira", "on Sunday"),
        "Velmar beat Dorten 3 to 1 before 450 visitors on Sunday with a goal by Mira.",
    ),
]


@pytest.mark.parametrize(("event", "summary"), EVENTS)
def test_summaries_gather_the_facts(event, summary):
    assert event.summary() == summary
    for seed in range(8):
        report = Reporter(random.Random(seed), names("train")).report(event)
        words = {word.strip(".") for word in report.split()}
        assert {"Mira", "Velmar", "450" if "450" in summary else "700"} <= words
        assert len(sentences(report)) in range(5, 8)


def test_all_kinds_of_events_come_up():
    kinds = {transfer.kind for transfer in TRANSFERS} | {"meeting", "match"}
    assert all(len(tagged("train", kind)) > 500 for kind in kinds)
    assert all(len(tagged("test", kind)) > 30 for kind in kinds)


def test_the_lexicon_is_that_of_the_translation_corpus():
    known = {noun.english_plural for noun in lexicon.THINGS}
    assert all(
        known & set(row["target"].replace(".", "").split()) for row in ROWS["test"] if "match" not in row["tags"]
    )
