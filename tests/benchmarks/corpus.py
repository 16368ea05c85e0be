"""How fast a corpus is read and encoded, and how much memory that takes as it grows.

    make bench-corpus                                       a synthetic corpus of 20 and 100 MB
    make bench-corpus OPTIONS="--data FOLDER --sizes 100 1000"

FOLDER has two aligned files, train.X and train.Y. Rows are two of its pairs joined, another two each time, and every
fourth has a slip of the pen, so that a gigabyte is no repetition of a few megabytes.

Encoding is compared with the `tokenizers` library alone: the same vocabulary and the same texts, one thread, in turns, by
seconds of the processor. Ours reads the corpus, normalises, encodes and writes token files; the library's `encode_batch_fast`
gives lists of ids from texts in memory.
"""

import argparse
import itertools
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
os.environ.update(ONE_THREAD)

import tokenizers  # noqa: E402 (reads the environment)
from kept import keep  # noqa: E402
from memory import measured  # noqa: E402

from rnnlm.data.config import DataConfig  # noqa: E402
from rnnlm.data.corpus import read_split  # noqa: E402
from rnnlm.data.ingest import ingest  # noqa: E402
from rnnlm.data.sources import check_sources  # noqa: E402
from rnnlm.data.tokenizing import tokenize_corpus  # noqa: E402
from rnnlm.demo.corpora import rows  # noqa: E402
from rnnlm.storage import Store  # noqa: E402
from rnnlm.text.config import TokenizerConfig  # noqa: E402
from rnnlm.text.tokenizer import Tokenizer  # noqa: E402

_TURNS = 3
_BATCH = 10_000
"""Texts a call of the library: of the sizes tried, the one at which it is fastest."""


def pairs(folder: Path | None) -> list[tuple[str, str]]:
    """The pairs that texts are made of."""
    if folder is None:
        return [(row["source"], row["target"]) for row in rows("translation", "train")]
    files = sorted(folder.glob("train.*"))
    if len(files) != 2:
        raise SystemExit(f"{folder}: should have two files, train.X and train.Y (has {len(files)})")
    sources, targets = (file.read_text("utf-8").splitlines() for file in files)
    return list(zip(sources, targets, strict=True))


def mixed(found: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Pairs without end, no two alike where the given ones are not."""
    order = list(range(len(found)))
    chance = random.Random(0)
    chance.shuffle(order)
    for number in itertools.count():
        turn, place = divmod(number, len(found))
        one, other = found[place], found[order[(place + turn * 7919) % len(found)]]
        source, target = f"{one[0]} {other[0]}", f"{one[1]} {other[1]}"
        if number % 4 == 0:
            cut = chance.randrange(len(source) - 1)
            source = source[:cut] + source[cut + 1] + source[cut] + source[cut + 2 :]
        yield source, target


def write(found: list[tuple[str, str]], megabytes: int, folder: Path) -> DataConfig:
    """Make a corpus of a size, and say how it is read."""
    left = megabytes * 1_000_000
    with (folder / "train.src").open("w") as sources, (folder / "train.tgt").open("w") as targets:
        for source, target in mixed(found):
            left -= len(source.encode()) + len(target.encode()) + 2
            if left < 0:
                break
            sources.write(source + "\n")
            targets.write(target + "\n")
    return DataConfig.parse({"train": {"source": str(folder / "train.src"), "target": str(folder / "train.tgt")}})


def cpu_s(work: Callable[[], Any]) -> float:
    """Seconds of the processor."""
    started = time.process_time()
    work()
    return time.process_time() - started


def speed(data: DataConfig, megabytes: int, folder: Path) -> dict[str, float]:
    """MB a second of a core: reading, encoding, and the library's encoding."""
    corpus, tokens = Store(str(folder / "corpus")), Store(str(folder / "tokens"))
    sources = check_sources(data, is_text=False, base=folder)
    reading = [cpu_s(lambda: ingest(sources, data, seed=0, store=corpus)) for _ in range(_TURNS)]
    tokenize_corpus(corpus, tokens, data=data, tokenizer=TokenizerConfig(), seed=0)
    serialized = tokens.read_bytes("tokenizer.json").decode()
    texts = [text for batch in _batches(corpus) for column in batch.columns for text in column.to_pylist()]

    def ours() -> None:
        given = Tokenizer.from_json(serialized)
        tokenize_corpus(corpus, tokens, data=data, tokenizer=TokenizerConfig(), seed=0, given=given)

    def bare() -> None:
        library = tokenizers.Tokenizer.from_str(serialized)
        for start in range(0, len(texts), _BATCH):
            for encoding in library.encode_batch_fast(texts[start : start + _BATCH], add_special_tokens=False):
                assert encoding.ids is not None

    turns = [(cpu_s(ours), cpu_s(bare)) for _ in range(_TURNS)]
    seconds, library_s = (median(each) for each in zip(*turns, strict=True))
    return {
        "megabytes": megabytes,
        "ingest_mb_s": round(megabytes / median(reading), 2),
        "encode_mb_s": round(megabytes / seconds, 2),
        "library_mb_s": round(megabytes / library_s, 2),
        "ratio": round(median(other / own for own, other in turns), 2),
    }


def _batches(corpus: Store) -> Iterator[Any]:
    for split in ("train", "valid", "gate", "test"):
        yield from read_split(corpus, split, ["source", "target"])


def memory(data: DataConfig, megabytes: int, folder: Path) -> dict[str, float]:
    """Seconds and peak memory of the two commands, as they are run."""
    experiment = folder / "bench.toml"
    sides = data.train
    experiment.write_text(
        f'name = "bench"\ntask = "translate"\n[data.train]\nsource = "{sides.source}"\ntarget = "{sides.target}"\n'  # type: ignore[union-attr]
    )
    row: dict[str, float] = {"megabytes": megabytes}
    for stage in ("ingest", "tokenize_corpus"):
        command = [sys.executable, "-m", f"pipelines.{stage}", str(experiment), "--store", str(folder / "store")]
        cost = measured(command, {})
        row[f"{stage}_s"] = round(cost.seconds, 1)
        row[f"{stage}_cpu_s"] = round(cost.cpu_s, 1)
        row[f"{stage}_peak_mb"] = round(cost.peak_bytes / 1e6)
    return row


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="real text; else the synthetic translation corpus")
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[20, 100], metavar="MB", help="where memory is measured"
    )
    parser.add_argument("--speed", type=int, default=20, metavar="MB", help="where speed is measured; 0: not at all")
    parser.add_argument("--scratch", type=Path, help="a folder on a disk with room for four times the text")
    given = parser.parse_args()
    found = pairs(given.data)
    text = "synthetic" if given.data is None else given.data.name
    if given.speed:
        with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
            row = speed(write(found, given.speed, Path(folder)), given.speed, Path(folder))
        print(
            f"{row['megabytes']} MB, one core: ingest {row['ingest_mb_s']} MB/s, encoding {row['encode_mb_s']} MB/s, "
            f"the library alone {row['library_mb_s']} MB/s: {row['ratio']} of it"
        )
        keep(f"corpus speed, {text}", row)
    for size in given.sizes:
        with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
            row = memory(write(found, size, Path(folder)), size, Path(folder))
        for stage in ("ingest", "tokenize_corpus"):
            print(
                f"{size:>6} MB {stage:<16} {row[f'{stage}_s']:>7} s {row[f'{stage}_cpu_s']:>7} s of processors "
                f"{row[f'{stage}_peak_mb']:>6} MB at most"
            )
        keep(f"corpus memory, {text}, {size} MB", row)


if __name__ == "__main__":
    main()
