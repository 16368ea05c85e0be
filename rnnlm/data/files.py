"""Input files: which ones a pattern names, what format they have, and whether they can be read at all.

Everything here is answered from the first megabyte of a file, so that a mistake shows before any work is done. Apart are its
digest, its number of lines where it is aligned, and JSON objects in longer lines. A single bad row is no problem here; `rows`
puts it aside.
"""

import csv
import glob
import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from rnnlm.errors import DataError, UsageError
from rnnlm.storage import sha256_file

Format = Literal["text", "csv", "tsv", "jsonl", "parquet"]

SAMPLE_BYTES = 1 << 20
SAMPLE_ROWS = 1_000
BAD_LINES_SHARE = 0.5
"""Share of undecodable lines in the sample above which a file is not text as a whole."""

_SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"
_FOREIGN = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
BOM = b"\xef\xbb\xbf"
_BLOCK_BYTES = 1 << 20
_LINE_BYTES = 1 << 26


@dataclass
class Problems:
    """Everything that is wrong with the input, gathered so that the user reads it all at once."""

    usage: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)

    def raise_any(self) -> None:
        """Raise what was gathered.

        Raises:
            UsageError: something named is missing or does not fit.
            DataError: all that was named is there, but some of it is empty or not text.
        """
        lines = self.usage + self.data
        if lines:
            count = f"{len(lines)} problem{'s' if len(lines) > 1 else ''} with the input:"
            raise (UsageError if self.usage else DataError)("\n  ".join([count, *lines]))


@dataclass(frozen=True)
class InputFile:
    """A file that was found and looked at.

    Attributes:
        path: where it lies.
        label: its name in row ids, rejects and reports; the same wherever its folder lies.
        columns: names of the columns; empty for plain text.
        digest: SHA-256 of the file as it lies there.
        text_bytes: bytes after decompression, an estimate for gzipped files of 4 GB and more; of Parquet those of its columns.
    """

    path: Path
    label: str
    format: Format
    gzipped: bool
    columns: tuple[str, ...]
    digest: str
    text_bytes: int

    def open_bytes(self) -> IO[bytes]:
        """The content, decompressed."""
        return _open(self.path, self.gzipped)


def expand(patterns: str | Sequence[str], base: Path, key: str, problems: Problems) -> list[Path]:
    """Files that paths and globs name, in the order given, each glob sorted; no file twice.

    Args:
        patterns: one or several.
        base: where relative ones start.
        key: the setting they come from, for messages.
        problems: receives a line for each pattern that names nothing.
    """
    found: dict[Path, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        named = Path(pattern).expanduser()
        path = base / named
        if path.is_file():
            found[path] = None
        elif path.is_dir():
            problems.usage.append(
                f"{key}: {path} is a folder; name files or a glob, such as {pattern.rstrip('/')}/*.txt"
            )
        elif glob.has_magic(pattern):
            absolute = str(Path(glob.escape(str(base))) / named)
            matches = sorted(Path(match) for match in glob.glob(absolute, recursive=True))  # noqa: PTH207 (an absolute pattern)
            files = [match for match in matches if match.is_file()]
            found.update(dict.fromkeys(files))
            if not files:
                problems.usage.append(f"{key}: {path} matches no file")
        else:
            problems.usage.append(f"{key}: {path}: no such file")
    return list(found)


def look_at(path: Path, label: str, key: str, problems: Problems, *, as_text: bool = False) -> InputFile | None:
    """Look at a file: its format, whether it is text, and what columns it has.

    Args:
        path: the file.
        label: its name in reports.
        key: the setting it comes from, for messages.
        problems: receives a line for what is wrong.
        as_text: read it line by line, whatever its name says.

    Returns:
        The file, or None where a line was added to `problems`.
    """
    where = f"{key}: {path}"
    try:
        with reading(path):
            return _looked_at(path, label, as_text)
    except UsageError as error:
        problems.usage.append(f"{where}: {error}")
    except DataError as error:
        problems.data.append(f"{where}: {error}")
    except OSError as error:
        problems.usage.append(f"{where}: cannot be read ({error.strerror or error})")
    return None


def _looked_at(path: Path, label: str, as_text: bool) -> InputFile:
    with path.open("rb") as stream:
        gzipped = stream.read(2) == _GZIP
    with _open(path, gzipped) as stream:
        sample = stream.read(SAMPLE_BYTES)
    form = _format(path, sample, as_text)
    if form == "parquet":
        columns, size = _parquet_columns(path, gzipped, sample)
    else:
        check_text(sample, whole=len(sample) < SAMPLE_BYTES)
        columns = _columns(path, gzipped, form, sample)
        size = _decompressed_bytes(path) if gzipped else path.stat().st_size
    return InputFile(path, label, form, gzipped, columns, sha256_file(path), size)


def _format(path: Path, sample: bytes, as_text: bool) -> Format:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (".gz", ".gzip")]
    named = _SUFFIXES.get(suffixes[-1], "text") if suffixes else "text"
    if as_text and named != "parquet":
        return "text"
    if named == "parquet" or sample.startswith(_PARQUET):
        return "parquet"
    return named


def check_text(sample: bytes, *, whole: bool) -> None:
    """Check that the beginning of a file is UTF-8 text.

    Args:
        sample: the first bytes.
        whole: whether that is all of the file.

    Raises:
        DataError: it is empty, or most lines of it are not text.
    """
    if whole and not sample.removeprefix(BOM).strip():
        raise DataError("is empty" if not sample else "has nothing but blanks")
    for magic, kind in _FOREIGN.items():
        if sample.startswith(magic):
            raise DataError(f"is {kind}; it has to be UTF-8 text, plain or gzipped")
    lines = sample.split(b"\n")
    if (not whole and len(lines) > 1) or lines[-1] == b"":
        lines.pop()
    bad = [number for number, line in enumerate(lines, start=1) if not _is_text(line, cut=not whole)]
    if len(bad) > BAD_LINES_SHARE * len(lines):
        raise DataError(
            f"is not UTF-8 text ({len(bad)} of the first {len(lines)} lines are not, from line {bad[0]} on)"
        )


def _is_text(line: bytes, *, cut: bool) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        if not (cut and error.start >= len(line) - 3):
            return False
    return b"\0" not in line


def _columns(path: Path, gzipped: bool, form: Format, sample: bytes) -> tuple[str, ...]:
    if form == "text":
        return ()
    if form == "jsonl":
        with _open(path, gzipped) as stream:
            return _json_keys(stream)
    return header(sample.removeprefix(BOM).split(b"\n", 1)[0], form)


def header(line: bytes, form: Format) -> tuple[str, ...]:
    """Column names in the first line of a CSV or TSV file.

    Raises:
        DataError: the line is not UTF-8, or its quotes do not close.
    """
    try:
        text = line.removeprefix(BOM).rstrip(b"\r\n").decode()
        return tuple(text.split("\t")) if form == "tsv" else tuple(next(csv.reader([text], strict=True), []))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the first line is no header of column names ({error})") from None


def _json_keys(stream: IO[bytes]) -> tuple[str, ...]:
    """Keys of the first object and of those in the megabyte behind it. A line of more than `_LINE_BYTES` is passed over."""
    keys: dict[str, None] = {}
    begun, left = False, SAMPLE_BYTES
    for line in islice(iter(partial(stream.readline, _LINE_BYTES), b""), SAMPLE_ROWS):
        text = line.removeprefix(BOM).strip()
        if text.startswith(b"[") and not begun:
            raise UsageError("is one JSON array; write one object a line (JSON Lines)")
        begun = begun or bool(text)
        left -= len(line) if keys else 0
        if left < 0:
            break
        keys.update(dict.fromkeys(_keys_of(text)))
    if not keys:
        raise DataError("has no JSON object in its first lines; one object a line is expected (JSON Lines)")
    return tuple(keys)


def _keys_of(line: bytes) -> Iterator[str]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return
    if isinstance(value, dict):
        yield from flat_names(value)


def flat_names(value: dict[str, object], prefix: str = "") -> Iterator[str]:
    """Names of the values of a nested object, inner ones with a dot: `translation.de`."""
    for key, inner in value.items():
        yield prefix + key
        if isinstance(inner, dict):
            yield from flat_names(inner, f"{prefix}{key}.")


def _parquet_columns(path: Path, gzipped: bool, sample: bytes) -> tuple[tuple[str, ...], int]:
    """Names of the columns, and their bytes before compression."""
    if not sample:
        raise DataError("is empty")
    try:
        with open_parquet(path, gzipped) as file:
            footer = file.metadata
            size = sum(footer.row_group(number).total_byte_size for number in range(footer.num_row_groups))
            names = tuple(name for column in file.schema_arrow for name in _arrow_names(column, ""))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"is not a Parquet file ({str(error).splitlines()[0]})") from None
    if footer.num_rows == 0:
        raise DataError("has no rows")
    return names, size


def _arrow_names(column: pa.Field, prefix: str) -> Iterator[str]:
    yield prefix + column.name
    if pa.types.is_struct(column.type):
        for inner in column.type:
            yield from _arrow_names(inner, f"{prefix}{column.name}.")


def open_parquet(path: Path, gzipped: bool) -> pq.ParquetFile:
    """A Parquet file, gzipped as a whole or not."""
    return pq.ParquetFile(pa.BufferReader(gzip.decompress(path.read_bytes())) if gzipped else path)


def count_lines(file: InputFile) -> int:
    """Lines of a text file; a last one without a newline counts."""
    total, last = 0, b"\n"
    with reading(file.path), file.open_bytes() as stream:
        while block := stream.read(_BLOCK_BYTES):
            total += block.count(b"\n")
            last = block[-1:]
    return total + (last != b"\n")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn a broken gzip stream into our error.

    Raises:
        DataError: the file is cut off or damaged.
    """
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path.name} is a damaged gzip file ({error})") from None


def labels(paths: Sequence[Path]) -> list[str]:
    """Short names of files: relative to the folder that they all share."""
    if not paths:
        return []
    top = os.path.commonpath([path.parent for path in paths])
    return [Path(os.path.relpath(path, top)).as_posix() for path in paths]


def _open(path: Path, gzipped: bool) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb") if gzipped else path.open("rb"))


def _decompressed_bytes(path: Path) -> int:
    """Size that a gzip stream of one member says at its end (modulo 4 GiB); at least that of the file."""
    with path.open("rb") as stream:
        stream.seek(-4, os.SEEK_END)
        return max(int.from_bytes(stream.read(4), "little"), path.stat().st_size)
