import pytest

from rnnlm.evaluation.sentences import sentences, units


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("One thing. Another thing! A third?", ["One thing.", "Another thing!", "A third?"]),
        (
            "Dr. Green met J. Stone at 4.30 p.m. today. They left.",
            ["Dr. Green met J. Stone at 4.30 p.m. today.", "They left."],
        ),
        ('"Stop!" she said. He did.', ['"Stop!" she said.', "He did."]),
        ("It was him and I. We went home.", ["It was him and I.", "We went home."]),
        ("Well... That is it", ["Well...", "That is it"]),
        ("今日は寒い。外に出ない！", ["今日は寒い。", "外に出ない！"]),
        (" . Begin", [".", "Begin"]),
        ("", []),
    ],
)
def test_sentences(line, expected):
    assert sentences(line) == expected


def test_lines_of_a_dialogue_are_its_units():
    assert units("Ann: Hi. How are you?\r\n\r\nBen: Fine. You?\r\nyes") == [
        "Ann: Hi. How are you?",
        "Ben: Fine. You?",
        "yes",
    ]


def test_prose_on_several_lines_is_cut_into_sentences():
    assert units("First one. Second one.\nThird one.") == ["First one.", "Second one.", "Third one."]
    assert units("Note: a single line. With two.") == ["Note: a single line.", "With two."]
    assert units(" \n ") == []
