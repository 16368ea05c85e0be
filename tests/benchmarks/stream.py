"""A long stream of text: its speed and the process's memory as it goes on, a line for each tenth.

    python tests/benchmarks/stream.py [--characters 1000000] [--precision fp32|bf16|int8] [--package FOLDER]

Without a package the model has random weights: characters, 2 x 512 units, as job d. Fails where memory grows by a megabyte or
more over the last nine tenths.
"""

import argparse
import string
import sys
import time
from itertools import islice
from pathlib import Path

import torch
from jobs import JOBS

import rnnlm
from rnnlm.decoding.generator import Generator
from rnnlm.models.build import build_model
from rnnlm.models.config import LanguageModelConfig
from rnnlm.text.tokenizer import Tokenizer

TENTHS = 10
MOST_GROWTH = 1 << 20
"""Bytes, over all but the first tenth."""


def random_generator() -> Generator:
    """A language model of job d's layers that has learnt nothing, over printable characters."""
    job = JOBS["d"]
    config = LanguageModelConfig(embedding_size=job.E, hidden_size=512, num_layers=2, tie_embeddings=False)
    tokenizer = Tokenizer.train([string.printable], kind="char", vocab_size=100, min_frequency=1)
    torch.manual_seed(0)
    return Generator(build_model(config, tokenizer.vocab_size), config, tokenizer, task="text")


def resident_bytes() -> int:
    """Memory of this process that is in use."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4_096


def main() -> int:
    """Stream, tell, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--characters", type=int, default=1_000_000)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--package", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    generator = random_generator() if given.package is None else rnnlm.load(given.package)
    length = given.characters
    pieces = generator.stream(
        "a", method="sample", max_length=length, min_length=length, precision=given.precision, seed=1
    )
    memory = []
    for tenth in range(TENTHS):
        began = time.perf_counter()
        made = sum(len(piece) for piece in islice(pieces, length // TENTHS))
        seconds = time.perf_counter() - began
        assert made, "the stream has ended early"
        memory.append(resident_bytes())
        print(
            f"{tenth + 1:>3}/{TENTHS}  {made / seconds:>9,.0f} characters/s  {memory[-1] / 2**20:>8.2f} MiB", flush=True
        )
    growth = memory[-1] - memory[0]
    print(f"growth after the first tenth: {growth / 2**10:,.0f} KiB")
    return int(growth >= MOST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
