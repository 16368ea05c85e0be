"""Nothing of the corpora that lie beside the repository is in it: no eight words in a row of theirs."""

import gzip
import io
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
LENGTH = 8
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
PIECE_BYTES = 4_000_000


def words(text: bytes) -> list[bytes]:
    """Lower-cased words; UTF-8 bytes above ASCII count as letters."""
    return re.findall(rb"[a-z0-9\x80-\xff]+", text.lower())


def hashes(found: list[bytes]) -> np.ndarray:
    """A 64-bit hash of every run of eight words."""
    if len(found) < LENGTH:
        return np.empty(0, np.uint64)
    single = np.fromiter((hash(word) & (2**64 - 1) for word in found), np.uint64, len(found))
    total = np.zeros(len(found) - LENGTH + 1, np.uint64)
    for place in range(LENGTH):
        total = total * MULTIPLIER + single[place : place + len(total)]
    return total


def pieces(path: Path) -> Iterator[bytes]:
    """A file's content, decompressed, in pieces that share eight words; of Parquet files the strings."""
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    if content.startswith(b"PAR1"):
        content = strings(content)
    if ".jsonl" in path.suffixes:
        content = re.sub(rb"\\[nrtbf]", b" ", content)
    for start in range(0, len(content), PIECE_BYTES):
        yield content[max(0, start - 400) : start + PIECE_BYTES]


def strings(content: bytes) -> bytes:
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(content))
    columns = [column.to_pylist() for column in table.columns]
    return "\n".join(value for column in columns for value in column if isinstance(value, str)).encode()


def committed() -> list[Path]:
    result = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if result.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in result.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def shared_runs(files: list[Path], corpora: list[Path]) -> dict[str, list[str]]:
    """Runs of eight words of `files` that occur in `corpora`, by file."""
    texts = {path: words(path.read_bytes()) for path in files if b"\0" not in path.read_bytes()}
    runs = {path: hashes(found) for path, found in texts.items()}
    wanted = np.unique(np.concatenate([np.empty(0, np.uint64), *runs.values()]))
    seen = np.zeros(len(wanted), bool)
    for corpus in corpora:
        for piece in pieces(corpus):
            found = hashes(words(piece))
            places = np.minimum(np.searchsorted(wanted, found), max(0, len(wanted) - 1))
            if len(wanted):
                seen[places[wanted[places] == found]] = True
    known = set(wanted[seen].tolist())
    return {
        str(path): [b" ".join(texts[path][number : number + LENGTH]).decode() for number in places]
        for path, run in runs.items()
        if (places := [number for number, value in enumerate(run.tolist()) if value in known])
    }


def test_it_finds_a_run_of_eight_words(tmp_path: Path) -> None:
    corpus, ours, shorter = tmp_path / "corpus.gz", tmp_path / "ours.py", tmp_path / "shorter.py"
    corpus.write_bytes(gzip.compress(b"Some words. one TWO, three four five six seven eight nine!"))
    ours.write_text('x = "four  five\nsix seven eight nine" # three two four one two three four five six seven eight')
    shorter.write_text("one two three four five six seven, and eight")
    assert shared_runs([ours, shorter], [corpus]) == {str(ours): ["one two three four five six seven eight"]}


def test_nothing_of_the_corpora_is_committed() -> None:
    if not DATA.is_dir():
        pytest.skip(f"no corpora in {DATA.name} beside the repository")
    corpora = sorted(path for path in DATA.rglob("*") if path.is_file() and path.name != "README.md")
    found = shared_runs(committed(), corpora)
    assert {name: runs[:3] for name, runs in found.items()} == {}
