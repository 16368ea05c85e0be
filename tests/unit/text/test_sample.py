import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnlm.text.sample import num_bytes, sample_texts

LINES = [f"line {number} of a corpus" for number in range(5_000)]
TOTAL = sum(map(num_bytes, LINES))


@pytest.mark.parametrize("known", [True, False])
def test_sample_is_seeded_ordered_and_bounded(known):
    total = TOTAL if known else None
    sample = list(sample_texts(LINES, 20_000, 1, total))
    assert sample == list(sample_texts(iter(LINES), 20_000, 1, total))
    assert sample != list(sample_texts(LINES, 20_000, 2, total))
    assert 17_000 < sum(map(num_bytes, sample)) <= 20_000
    places = [LINES.index(text) for text in sample]
    assert places == sorted(places)
    assert places[0] < 500
    assert places[-1] > 4_500


@pytest.mark.parametrize("total", [TOTAL, None])
def test_small_corpus_is_taken_whole(total):
    assert list(sample_texts(LINES, 2 * TOTAL, 1, total)) == LINES


@pytest.mark.parametrize("total", [len("word word\n" * 50_000), None])
@pytest.mark.parametrize("line", ["word word\n", "word word ", "wordword.."])
def test_one_large_text_is_cut(line, total):
    text = line * 50_000
    sample = "".join(sample_texts([text], 10_000, 1, total))
    assert 5_000 < len(sample) <= 10_000
    if "\n" in line:
        assert set(sample.splitlines()) == {"word word"}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text()), st.integers(0, 100), st.booleans())
def test_budget_holds(texts, max_bytes, known):
    total = sum(map(num_bytes, texts)) if known else None
    sample = list(sample_texts(texts, max_bytes, 0, total))
    assert sum(map(num_bytes, sample)) <= max_bytes
    if total is None and sum(map(num_bytes, texts)) <= max_bytes:
        assert "".join(sample) == "".join(texts)
