"""Noise on a training's tokens: to a neural model what smoothing is to one that counts n-grams.

Shapes: B lanes of a window, T its tokens, V the vocabulary.
"""

from dataclasses import dataclass

import numpy as np

from rnnlm.data.permutation import NOISE, random_bits
from rnnlm.data.ragged import Ragged, spread_pieces

COUNTED_TOKENS = 1 << 24
"""Of a greater corpus: what bigrams are counted on."""


@dataclass(frozen=True)
class KneserNeyNoise:
    """Bigram Kneser-Ney noise (Xie et al. 2017, https://arxiv.org/abs/1703.02573, section 3.3).

    A position's input x and its target both become others with a chance of `strength` N(x, .) / c(x): the more different
    tokens follow x for how often it occurs, the less is known of what follows it. The others are drawn as often as they
    follow different tokens: N(., y) / N(., .). A window's noise is a function of (seed, step, lane) alone.

    Attributes:
        rates_V: chance of each input token.
        cumulative_V: of what replaces them, float64, rising to 1.
        seed: of the draws.
    """

    rates_V: np.ndarray
    cumulative_V: np.ndarray
    seed: int

    @classmethod
    def from_corpus(cls, tokens: Ragged, vocab_size: int, strength: float, seed: int) -> "KneserNeyNoise":
        """Count the bigrams of a corpus.

        Args:
            tokens: documents, each ending in `<eos>`, which also stands before the next one.
            vocab_size: V, above all ids.
            strength: chance of a token that is always followed by another; from 0 to 1.
            seed: of the draws.
        """
        pieces = [np.asarray(piece, np.int64) for piece in spread_pieces(tokens.values, COUNTED_TOKENS)]
        bigrams = np.unique(np.concatenate([np.unique(piece[:-1] * vocab_size + piece[1:]) for piece in pieces]))
        counts_V = sum(np.bincount(piece[:-1], minlength=vocab_size) for piece in pieces)
        followers_V = np.bincount(bigrams // vocab_size, minlength=vocab_size)
        preceded_V = np.bincount(bigrams % vocab_size, minlength=vocab_size)
        return cls(
            rates_V=strength * followers_V / np.maximum(counts_V, 1),
            cumulative_V=np.cumsum(preceded_V) / max(1, preceded_V.sum()),
            seed=seed,
        )

    def apply(self, step: int, lanes: np.ndarray, num_lanes: int, input_BT: np.ndarray, target_BT: np.ndarray) -> None:
        """Put noise on a window, in place; padding is left alone.

        Args:
            step: of the window.
            lanes: ids of the rows, int64 [B].
            num_lanes: of all workers.
            input_BT: int64.
            target_BT: int64; 0 where a lane has no token any more.
        """
        shape = (3, num_lanes, input_BT.shape[1])
        uniform = random_bits(int(np.prod(shape)), self.seed, step, NOISE).reshape(shape)[:, lanes] / 2.0**64
        place = (uniform[0] < self.rates_V[input_BT]) & (target_BT != 0)
        for tokens_BT, draws in zip((input_BT, target_BT), uniform[1:], strict=True):
            tokens_BT[place] = np.searchsorted(self.cumulative_V, draws[place], "right").clip(max=len(self.rates_V) - 1)
