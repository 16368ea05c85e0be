from rnnlm.evaluation.samples import PROMPT_CHARACTERS, choose_prompts

PAGE = "\n".join(f"line {number} of a page that goes on for quite a while" for number in range(60))


def test_prompts_begin_at_lines_and_are_followed_by_their_references():
    prompts = choose_prompts(["", PAGE, "a short text of six words"], 5)
    assert len(prompts) == 5
    for prompt in prompts:
        text = ["", PAGE, "a short text of six words"][prompt.row]
        assert prompt.text + prompt.reference in text
        assert prompt.text.startswith("line")
        assert len(prompt.text) >= PROMPT_CHARACTERS
        assert prompt.reference[0] in " \n"


def test_short_documents_are_cut_in_the_middle():
    assert choose_prompts(["one two three four"], 1) == [(0, "one two three", " four")]


def test_one_long_line_is_cut_between_words():
    line = "word " * 400
    assert all(prompt.text.startswith("word") for prompt in choose_prompts([line], 4))


def test_equal_places_are_taken_once():
    assert len(choose_prompts(["one two three four"], 10)) == 1


def test_nothing_to_continue():
    assert choose_prompts([], 3) == []
    assert choose_prompts(["", "word", "word "], 3) == []
    assert choose_prompts(["one two three"], 0) == []
