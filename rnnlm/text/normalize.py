"""What is changed in a text before it is cut into tokens: the same in training, evaluation and generation."""

import re
import unicodedata
from typing import Literal

from rnnlm.text.config import NormalizeConfig

_SURROGATES = re.compile("[\ud800-\udfff]")
_BLANKS = re.compile(r"[^\S\n]+")
_LINE_ENDS = re.compile(r" ?\n ?")


def normalize(text: str, *, unicode: str, whitespace: str, lowercase: bool) -> str:
    r"""A text with its Unicode form, blanks and case made uniform, in this order.

    Lone surrogates, which UTF-8 cannot hold and no file can bring, become U+FFFD whatever the settings are.

    Args:
        text: any string.
        unicode: `none`, `nfc` or `nfkc`.
        whitespace: `keep`, or `collapse`: strip the ends of each line (`\r` too), and turn each run of blanks inside
            it into one space. Newlines stay.
        lowercase: whether to turn the text to lower case.
    """
    if not text.isascii():
        text = _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
        form = _form(unicode)
        if form is not None:
            text = unicodedata.normalize(form, text)
    if whitespace == "collapse":
        text = _LINE_ENDS.sub("\n", _BLANKS.sub(" ", text)).strip(" ")
    return text.lower() if lowercase else text


def _form(unicode: str) -> Literal["NFC", "NFKC"] | None:
    match unicode:
        case "none":
            return None
        case "nfc":
            return "NFC"
        case "nfkc":
            return "NFKC"
        case _:
            raise ValueError(f"unicode should be 'none', 'nfc' or 'nfkc' (got {unicode!r})")


class Normalizer:
    """`normalize` with the settings of a configuration; can be sent to other processes."""

    def __init__(self, config: NormalizeConfig) -> None:
        self.config = config

    def __call__(self, text: str) -> str:
        """The normalised text."""
        config = self.config
        return normalize(text, unicode=config.unicode, whitespace=config.whitespace, lowercase=config.lowercase)
