"""What is measured: the shapes of the jobs, and the talk between `bench.py` and the processes that do the work.

Nothing beyond the standard library is imported here: the processes of peers have an environment of their own.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TextJob:
    """Training a language model on random tokens: E embedding, H hidden, L layers, V vocabulary, B lanes, T steps of a window."""

    what: str
    E: int
    H: int
    L: int
    V: int
    B: int
    T: int
    dropout: float
    tied: bool = False
    weight_drop: float = 0.0

    @property
    def matmul_weights(self) -> int:
        """Weights that every token is multiplied by; the last layer of a tied model has E units."""
        widths = [self.E, *[self.H] * (self.L - 1), self.E if self.tied else self.H]
        layers = sum(4 * out * (read + out) for read, out in itertools.pairwise(widths))
        return layers + widths[-1] * self.V


@dataclass(frozen=True)
class PairJob:
    """An encoder-decoder with attention: bidirectional encoder layers of H / 2 units a direction, decoder layers of H.

    The output layer reads tanh of H units, which read decoder and context, as in the peers' models.
    """

    what: str
    E: int
    H: int
    V: int
    B: int
    S: int
    T: int
    dropout: float
    encoder_layers: int = 1
    decoder_layers: int = 2

    @property
    def source_weights(self) -> int:
        """Weights that every source token is multiplied by; the last are those of attention's keys."""
        half = self.H // 2
        encoder = 2 * 4 * half * (self.E + half) + (self.encoder_layers - 1) * 2 * 4 * half * (self.H + half)
        return encoder + self.H * self.H

    @property
    def target_weights(self) -> int:
        """Weights that every target token is multiplied by: decoder layers, attention's queries, output."""
        decoder = 4 * self.H * (self.E + self.H) + (self.decoder_layers - 1) * 4 * self.H * (2 * self.H + self.H)
        return decoder + self.H * self.H + 2 * self.H * self.H + self.H * self.V

    @property
    def matmul_weights(self) -> int:
        """Those of a target token and of as many source tokens as there are of one (S = T)."""
        return self.source_weights + self.target_weights

    def decoding_flops(self, beam: int) -> int:
        """Operations in products for one sentence, each source encoded once; a table's look-up counts as what it stands for."""
        return 2 * (self.source_weights * self.S + beam * self.target_weights * self.T)


JOBS: dict[str, TextJob | PairJob] = {
    "a": TextJob("LM 2x200, vocabulary 10k, batch 20 x 35", 200, 200, 2, 10_000, 20, 35, 0.2),
    "b": TextJob("LM 2x650, vocabulary 10k, batch 20 x 35", 650, 650, 2, 10_000, 20, 35, 0.5),
    "c": TextJob("AWD-LSTM 400/3x1150, tied, batch 20 x 70", 400, 1150, 3, 10_000, 20, 70, 0.4, True, 0.5),
    "d": TextJob("characters, LM 2x512, batch 64 x 128", 512, 512, 2, 100, 64, 128, 0.2),
    "e": PairJob("encoder-decoder, vocabulary 8k, batch 64 x 15", 256, 512, 8_000, 64, 15, 15, 0.2),
}
"""Letters as in the table of the README."""

SENTENCES = 256
"""Sentences of one round of decoding: of job e's shape, S tokens each, T tokens made, the end of a sentence not allowed."""

REAL_BATCH = 64
"""Sentences that are translated together where trained models are compared, on both sides."""
REAL_DROPOUT, REAL_SMOOTHING = 0.3, 0.1
"""Of their training."""


def serve_beams(translate: Callable[[int, str], list[list[int]]], **facts: Any) -> None:
    """Be a trained model that is measured: on each line with a beam's width and a variant, translate the test set.

    Args:
        translate: from width and variant to the tokens of each sentence.
        facts: said at the start.
    """
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        beam, _, variant = line.strip().partition(" ")
        started = time.perf_counter()
        outputs = translate(int(beam), variant)
        print(json.dumps({"seconds": time.perf_counter() - started, "outputs": outputs}), flush=True)


def serve(step: Callable[[], int], **facts: Any) -> None:
    """Be a process that is measured: on each line with a number of seconds, work for about so long and say how fast it was.

    Args:
        step: does some work, and returns how many units it did.
        facts: said at the start.
    """
    step()
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        seconds, done, started = float(line), 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            done += step()
        print(json.dumps({"rate": done / (time.perf_counter() - started)}), flush=True)
