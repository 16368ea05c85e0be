"""Random orders that are a function of a key alone, on every machine and with every release of numpy.

numpy keeps the raw output of a bit generator and of SeedSequence stable between releases, but not what `Generator` makes
of it. So only raw output is used here.
"""

import numpy as np

DOCUMENTS = 1
"""Purpose of a draw, a part of its key: the order of documents in an epoch."""
WINDOWS = 2
"""The place of the first window of an epoch."""
PAIRS = 3
"""Which of several equally long pairs goes into which batch."""
BATCHES = 4
"""The order of batches in an epoch."""
LENGTHS = 5
"""The lengths of an epoch's windows."""
NOISE = 6
"""Which tokens of a window become others, and which."""


def random_bits(count: int, *key: int) -> np.ndarray:
    """Random numbers, uint64 [count], from a key of non-negative numbers such as (seed, epoch, purpose)."""
    bits = np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)
    return np.asarray(bits, np.uint64)


def permutation(count: int, *key: int) -> np.ndarray:
    """The numbers below `count` in a random order, int64 [count]."""
    return np.argsort(random_bits(count, *key), kind="stable")
