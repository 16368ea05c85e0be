import pytest

from rnnlm.demo import python_docs
from rnnlm.demo.python_docs import TEST_TOPICS, VALID_TOPICS, documents, lines, new_inputs, paragraphs, rows


def num_bytes(split):
    return sum(len(row["text"].encode()) for row in rows(split))


def test_paragraphs_are_blank_line_blocks_with_their_indentation():
    assert paragraphs("Title\n=====\n\n   code\n   more\n \n\nend\n") == ["Title\n=====", "   code\n   more", "end"]


def test_splits_have_the_sizes_that_figures_need():
    assert num_bytes("test") >= 45_000
    assert 12_000 <= num_bytes("valid") <= 30_000
    assert num_bytes("train") >= 250_000


def test_held_out_topics_are_the_fixed_ones():
    assert [row["id"] for row in rows("test")] == list(TEST_TOPICS)
    assert [row["id"] for row in rows("valid")] == list(VALID_TOPICS)
    assert not {row["id"] for row in rows("train")} & {*TEST_TOPICS, *VALID_TOPICS}


@pytest.mark.parametrize("split", ["valid", "test"])
def test_at_most_one_percent_of_held_out_lines_occur_in_train(split):
    train = {line for row in rows("train") for line in lines(row["text"])}
    held_out = [line for row in rows(split) for line in lines(row["text"])]
    assert sum(line in train for line in held_out) <= 0.01 * len(held_out)


def test_no_paragraph_stands_in_two_documents():
    seen = {}
    for split in ("test", "valid", "train"):
        for row in rows(split):
            for paragraph in set(paragraphs(row["text"])):
                assert paragraph not in seen, (paragraph, row["id"], seen[paragraph])
                seen[paragraph] = row["id"]


def test_a_document_is_its_topic_in_its_own_order():
    text = dict(documents("test"))["comparisons"]
    assert text.startswith("Comparisons\n***********\n\n")
    assert text.endswith("\n")
    assert paragraphs(text) == paragraphs(python_docs.topics["comparisons"])


def test_topics_that_this_python_lacks_are_skipped(monkeypatch):
    few = {
        "comparisons": "Comparisons\n\nOne.",
        "class": "Class\n\nOne.",
        "while": "While\n\nOne.",
        "for": "For\n\nOne.\n\nTwo.",
    }
    monkeypatch.setattr(python_docs, "topics", few)
    read = documents.__wrapped__
    assert read("test") == (("comparisons", "Comparisons\n\nOne.\n"),)
    assert read("valid") == (("class", "Class\n"),)
    assert read("train") == (("for", "For\n\nTwo.\n"), ("while", "While\n"))


def test_a_topic_with_nothing_left_is_no_document(monkeypatch):
    monkeypatch.setattr(python_docs, "topics", {"comparisons": "One.", "del": "One.", "del2": "Two.", "del3": "Two."})
    assert documents.__wrapped__("train") == (("del2", "Two.\n"),)


def test_new_inputs_are_forty_openings():
    assert len(set(new_inputs())) == 40
    assert all(len(text.split()) <= 8 for text in new_inputs())
    assert not {row["text"] for split in ("train", "valid", "test") for row in rows(split)} & set(new_inputs())
