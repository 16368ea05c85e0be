"""Which values are kept apart: combinations that train never has, and quotas for the held-out splits.

A rule by hash withholds one combination in eight. A held-out row in three has a withheld combination, one in ten has
names that no training row has, and every other row is made of what train has too.
"""

import hashlib
from collections.abc import Callable, Iterable
from functools import cache
from typing import Literal

Split = Literal["train", "valid", "test"]
Part = Literal["train", "valid", "test", "new"]
"""A split, or inputs that are in none."""
Row = dict[str, str]

SEED = "rnnlm demo 1"
SIZES: dict[Split, int] = {"train": 22_000, "valid": 510, "test": 1_020}
"""Rows of a split of pairs; those of valid and test divide by thirty, so that thirds and tenths come out exactly."""
NEW_INPUTS = 40

_WITHHELD_SHARE = 1 / 8


def draw_parts(draw: Callable[[Part, int, set[str]], list[Row]]) -> dict[Part, list[Row]]:
    """All parts of a corpus of pairs; the held-out ones are drawn first.

    Args:
        draw: so many rows of a part, none of which repeats what the set has of earlier ones; it adds its own to the set.
    """
    taken: set[str] = set()
    sizes: dict[Part, int] = {
        "test": SIZES["test"],
        "valid": SIZES["valid"],
        "new": NEW_INPUTS,
        "train": SIZES["train"],
    }
    return {part: draw(part, size, taken) for part, size in sizes.items()}


@cache
def withheld(first: str, second: str) -> bool:
    """Whether two values are kept from meeting in train, a fixed property of the two."""
    digest = hashlib.blake2b(f"{first}|{second}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < _WITHHELD_SHARE * 2**32


def any_withheld(firsts: Iterable[str], seconds: Iterable[str]) -> bool:
    """Whether any of the first values is kept apart from any of the second ones."""
    others = list(seconds)
    return any(withheld(first, second) for first in firsts for second in others)


def wants_combination(split: str, index: int) -> bool:
    """Whether row number `index` of a split has a withheld combination: every third one outside train."""
    return split != "train" and index % 3 == 0


def wants_names(split: str, index: int) -> bool:
    """Whether row number `index` of a split has names of its own: every tenth one outside train."""
    return split != "train" and index % 10 == 0
