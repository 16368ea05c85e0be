import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnlm.text.config import NormalizeConfig
from rnnlm.text.normalize import Normalizer, normalize


@pytest.mark.parametrize(
    ("settings", "text", "expected"),
    [
        ({}, " Ä \t b\r\n", " Ä \t b\r\n"),
        ({"unicode": "nfc"}, "e\u0301\ufb01", "\u00e9\ufb01"),
        ({"unicode": "nfkc"}, "e\u0301\ufb01", "\u00e9fi"),
        ({"whitespace": "collapse"}, "  a \t\u00a0 b \r\n\r\n  c\u2028d ", "a b\n\nc d"),
        ({"whitespace": "collapse"}, "\n a \n", "\na\n"),
        ({"lowercase": True}, "ÄB ẞ", "äb ß"),
        ({"unicode": "nfkc", "whitespace": "collapse", "lowercase": True}, "A\u2003\u2003\uff22", "a b"),
    ],
)
def test_settings_apply_in_order(settings, text, expected):
    assert Normalizer(NormalizeConfig(**settings))(text) == expected


def test_lone_surrogates_become_replacement_characters():
    assert normalize("a\ud800b", unicode="none", whitespace="keep", lowercase=False) == "a\ufffdb"


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match="nfd"):
        normalize("é", unicode="nfd", whitespace="keep", lowercase=False)


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_default_changes_nothing(text):
    assert Normalizer(NormalizeConfig())(text) == text


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_collapse_leaves_single_spaces_and_as_many_lines(text):
    result = normalize(text, unicode="none", whitespace="collapse", lowercase=False)
    assert result.count("\n") == text.count("\n")
    for line in result.split("\n"):
        assert line == " ".join(line.split())
    assert normalize(result, unicode="none", whitespace="collapse", lowercase=False) == result


def test_normalizer_can_be_sent():
    normalizer = pickle.loads(pickle.dumps(Normalizer(NormalizeConfig(lowercase=True))))
    assert normalizer("AbC") == "abc"
