"""A small rule that cuts a text into utterances or sentences, for lead baselines and for ROUGE-Lsum."""

import re

_END = re.compile(r"[.!?…]+[\"'”’»)\]]*\s+|[。！？]+[」』”’）]*\s*")
_SPEAKER = re.compile(r"[^\s:][^:]{0,39}:(\s|$)")
_ABBREVIATIONS = frozenset(
    {"bzw", "ca", "dr", "e.g", "etc", "fig", "i.e", "jr", "mr", "mrs", "ms", "prof", "sr", "st", "usw", "vs", "z.b"}
)


def units(text: str) -> list[str]:
    """The utterances of a dialogue, or the sentences of prose, in order, without blank ones.

    A text is a dialogue where it has several lines and most of them begin with a name and a colon.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    speakers = sum(_SPEAKER.match(line) is not None for line in lines)
    if len(lines) > 1 and 2 * speakers > len(lines):
        return lines
    return [sentence for line in lines for sentence in sentences(line)]


def sentences(line: str) -> list[str]:
    """The sentences of a line: it is cut after `.`, `!`, `?` or `…` and a blank, unless a lower-case letter follows, or
    the full stop belongs to a common abbreviation or an initial. Full-width marks need no blank.
    """
    found: list[str] = []
    start = 0
    for end in _END.finditer(line):
        if _is_end(line[start : end.start()], end.group(), line[end.end() : end.end() + 1]):
            found.append(line[start : end.end()].strip())
            start = end.end()
    found.append(line[start:].strip())
    return [sentence for sentence in found if sentence]


def _is_end(before: str, mark: str, after: str) -> bool:
    if after.islower():
        return False
    if not mark.startswith(".") or mark.startswith(".."):
        return True
    word = before.split()[-1].lstrip("\"'“‘«([") if before.split() else ""
    is_initial = len(word) == 1 and word.isalpha() and word != "I"
    return not (is_initial or word.lower() in _ABBREVIATIONS)
