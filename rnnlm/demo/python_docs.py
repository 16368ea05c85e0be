"""The reference documentation inside every CPython, as a corpus for a language model.

`pydoc_data.topics` holds the texts behind `help("topic")`. Several topics are chapters that repeat other topics word
for word, so paragraphs are dropped where they come up again, and train gives way to the held-out topics: a train
paragraph that shares even one line with a held-out topic is left out.
"""

import re
from collections.abc import Iterable
from functools import cache
from pydoc_data.topics import topics
from typing import Literal

Split = Literal["train", "valid", "test"]

# Every fourth, in alphabetical order, of the topics that have 3,000 to 16,000 characters in CPython 3.11: the sparsest such
# choice that holds 45 kB. No score had a say in it.
TEST_TOPICS = ("assignment", "comparisons", "identifiers", "objects", "strings", "typesseq-mutable")
VALID_TOPICS = ("async", "class", "raise", "subscriptions", "with")

_BLANK_LINES = re.compile(r"\n[ \t]*\n")
_OPENINGS = ("A {} is", "When a {} is used,", "The name of a {}", "Note that every {}")
_SUBJECTS = (
    "generator",
    "module",
    "decorator",
    "coroutine",
    "descriptor",
    "metaclass",
    "keyword argument",
    "list comprehension",
    "context manager",
    "built-in exception",
)


def paragraphs(text: str) -> list[str]:
    """Blank-line blocks of a text, without the blank lines around them and with their indentation."""
    return [block.strip("\n").rstrip() for block in _BLANK_LINES.split(text) if block.strip()]


def lines(block: str) -> list[str]:
    """Lines of a block that are not blank."""
    return [line for line in block.split("\n") if line.strip()]


@cache
def documents(split: Split) -> tuple[tuple[str, str], ...]:
    """Topic names and texts of a split, in alphabetical order.

    Test topics are taken whole, valid topics without what the test topics have, and train has every other topic
    without what either of them has. A topic with nothing left is no document; a topic that this Python does not have
    is skipped.
    """
    blocks = {name: paragraphs(text) for name, text in topics.items()}
    if split == "test":
        return _distinct(blocks, TEST_TOPICS, frozenset())
    if split == "valid":
        return _distinct(blocks, VALID_TOPICS, _lines_of(blocks, TEST_TOPICS))
    held_out = TEST_TOPICS + VALID_TOPICS
    return _distinct(blocks, sorted(set(blocks) - set(held_out)), _lines_of(blocks, held_out))


def rows(split: Split) -> list[dict[str, str]]:
    """One row for each document: `id` (the topic's name), `text`, `tags` (empty)."""
    return [{"id": name, "text": text, "tags": ""} for name, text in documents(split)]


def new_inputs() -> list[str]:
    """Forty openings of sentences for a model to go on with."""
    return [opening.format(subject) for subject in _SUBJECTS for opening in _OPENINGS]


def _lines_of(blocks: dict[str, list[str]], names: Iterable[str]) -> frozenset[str]:
    return frozenset(line for name in names for block in blocks.get(name, []) for line in lines(block))


def _distinct(
    blocks: dict[str, list[str]], names: Iterable[str], forbidden: frozenset[str]
) -> tuple[tuple[str, str], ...]:
    """Documents of the named topics, without forbidden lines and paragraphs that an earlier topic has."""
    earlier: set[str] = set()
    found = []
    for name in names:
        own = blocks.get(name, [])
        kept = [block for block in own if block not in earlier and forbidden.isdisjoint(lines(block))]
        earlier.update(own)
        if kept:
            found.append((name, "\n\n".join(kept) + "\n"))
    return tuple(found)
