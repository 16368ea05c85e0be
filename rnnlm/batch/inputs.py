"""Input of a batch job: which files, how many rows, and the rows themselves, cut into shards.

A row that cannot be read is a row all the same: it goes through with its problem, and comes out as `rejected`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rnnlm.batch.config import BatchConfig
from rnnlm.data import files, rows
from rnnlm.data.files import InputFile
from rnnlm.errors import UsageError

FALLBACK_COLUMN = "text"
PROBLEMS = {
    rows.OVER_LONG: "more bytes than generate.max_row_bytes",
    rows.NUL: "contains a NUL character",
    rows.BAD_BYTES: "not valid UTF-8",
    rows.BAD_JSON: "not a JSON object",
    rows.MISSING_KEY: "the input column is missing",
    rows.WRONG_TYPE: "the input is not a string",
    rows.WRONG_FIELDS: "another number of fields than the header",
    rows.BAD_CSV: "not valid CSV",
}


@dataclass(frozen=True)
class InputRow:
    """One row of input; `problem` says why it cannot be used."""

    row_id: str
    text: str | None
    problem: str | None = None


@dataclass(frozen=True)
class Shard:
    """Rows that become one output file."""

    name: str
    rows: list[InputRow]


@dataclass(frozen=True)
class Snapshot:
    """The input as it is now.

    Attributes:
        files: in the order of the output.
        counts: rows of each.
    """

    files: tuple[InputFile, ...]
    counts: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Rows in all."""
        return sum(self.counts)

    def plain(self) -> tuple[dict[str, Any], ...]:
        """Name, SHA-256 and rows of each file."""
        return tuple(
            {"name": file.label, "sha256": file.digest, "rows": count}
            for file, count in zip(self.files, self.counts, strict=True)
        )


def snapshot(patterns: Sequence[str], base: Path, config: BatchConfig) -> Snapshot:
    """Find and count the input.

    Raises:
        UsageError: a file is missing, a glob matches nothing, a column is absent; all of it at once.
        DataError: a file is empty or not text as a whole.
    """
    problems = files.Problems()
    paths = files.expand(list(patterns), base, "--input", problems)
    found = [
        files.look_at(path, label, "--input", problems) for path, label in zip(paths, files.labels(paths), strict=True)
    ]
    for file in found:
        if file is not None and file.format != "text":
            try:
                _roles(file, config)
            except UsageError as error:
                problems.usage.append(f"--input: {error}")
    problems.raise_any()
    inputs = tuple(file for file in found if file is not None)
    return Snapshot(inputs, tuple(sum(1 for _ in read_rows(file, config)) for file in inputs))


def read_rows(file: InputFile, config: BatchConfig) -> Iterator[InputRow]:
    """Rows of a file in order; plain text has one a line, blank lines included."""
    if file.format == "text":
        for line in rows.read_lines(file, config.max_row_bytes):
            yield _row(file, line.number, rows.decode(line))
        return
    roles = _roles(file, config)
    for row in rows.read_table(file, roles, config.max_row_bytes):
        if isinstance(row, rows.BadRow):
            yield _row(file, row.number, row)
        else:
            yield InputRow(row.values.get("id", f"{file.label}:{row.number}"), row.values["source"])


def shards(taken: Snapshot, config: BatchConfig, wanted: set[str] | None = None) -> Iterator[Shard]:
    """The input in shards, in order; a shard never spans two files.

    Args:
        taken: the input.
        config: rows of a shard.
        wanted: names of the shards to yield; None: all.
    """
    number = 0
    for file, count in zip(taken.files, taken.counts, strict=True):
        names = [f"part-{number + index:05d}" for index in range(-(-count // config.shard_rows))]
        number += len(names)
        if wanted is not None and not wanted & set(names):
            continue
        stream = read_rows(file, config)
        for name in names:
            batch = list(islice(stream, config.shard_rows))
            if wanted is None or name in wanted:
                yield Shard(name, batch)


def _row(file: InputFile, number: int, value: str | rows.BadRow) -> InputRow:
    row_id = f"{file.label}:{number}"
    if isinstance(value, rows.BadRow):
        return InputRow(row_id, value.excerpt, PROBLEMS.get(value.reason, value.reason))
    return InputRow(row_id, value)


def _roles(file: InputFile, config: BatchConfig) -> dict[str, str]:
    """Which column is read as what.

    Raises:
        UsageError: the input column is not there.
    """
    source = config.text_column
    if source not in file.columns and source == BatchConfig().text_column and FALLBACK_COLUMN in file.columns:
        source = FALLBACK_COLUMN
    wanted = {"source": source} | ({"id": config.id_column} if config.id_column else {})
    absent = [column for column in wanted.values() if column not in file.columns]
    if absent:
        have = ", ".join(file.columns) or "none"
        raise UsageError(f"{file.path}: no column {absent[0]!r} (it has: {have}); see generate.text_column")
    return wanted
