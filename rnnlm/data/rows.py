"""Rows of input files, one by one, each with its number. A row that cannot be read becomes a `BadRow` with the reason.

Readers never guess: a CSV record with a field too many is a bad row, not a row with shifted columns; a number where a
string should be is a bad row, not a string.

- Text: a row is a line. Lines end in LF or CRLF, nothing else.
- CSV: quoted as in RFC 4180, the first line is the header; a row may span lines and has the number of its first.
- TSV: fields between tabs, as they stand, without quoting; the first line is the header.
- JSONL: one object a line.
- Parquet: the row's number starts at 1.
"""

import csv
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, Final, NamedTuple, cast

import pyarrow as pa

from rnnlm.data.files import BOM, InputFile, header, open_parquet, reading
from rnnlm.errors import DataError

BLANK: Final = "blank"
OVER_LONG: Final = "over_long"
NUL: Final = "nul"
BAD_BYTES: Final = "bad_bytes"
BAD_JSON: Final = "bad_json"
MISSING_KEY: Final = "missing_key"
WRONG_TYPE: Final = "wrong_type"
WRONG_FIELDS: Final = "wrong_number_of_fields"
BAD_CSV: Final = "bad_csv"

EXCERPT_CHARS = 200
_RAW_ROOM = 8
"""A line of a table may be so many times longer than the row's text: escapes, and columns that nobody asked for."""


class Row(NamedTuple):
    """A row that was read: `values` maps each role (text, source, target, id, group, tags) to its string."""

    number: int
    values: dict[str, str]


class BadRow(NamedTuple):
    """A row that could not be read."""

    number: int
    reason: str
    excerpt: str


class Line(NamedTuple):
    """A physical line without its end; of an over-long one only the beginning. `ended`: whether it had an end."""

    number: int
    content: bytes
    over_long: bool
    ended: bool


class RoleError(ValueError):
    """A value of a row is missing or is not a string. `reason` is one of the constants above."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def read_lines(file: InputFile, limit_bytes: int) -> Iterator[Line]:
    """Physical lines of a file, in a memory of `limit_bytes`.

    Raises:
        DataError: a gzip stream is damaged.
    """
    with reading(file.path), file.open_bytes() as stream:
        number = 0
        while raw := stream.readline(limit_bytes + 2):
            number += 1
            ended = raw.endswith(b"\n")
            over_long = not ended and _skip_line(stream)
            content = raw.removesuffix(b"\n").removesuffix(b"\r")
            if number == 1:
                content = content.removeprefix(BOM)
            yield Line(number, content, over_long or len(content) > limit_bytes, ended or over_long)


def _skip_line(stream: IO[bytes]) -> bool:
    """Go to the end of a line that was read in part; whether there was more of it."""
    more = False
    while rest := stream.readline(1 << 20):
        more = True
        if rest.endswith(b"\n"):
            break
    return more


def decode(line: Line) -> str | BadRow:
    """The text of a line, or what is wrong with it."""
    if line.over_long:
        return BadRow(line.number, OVER_LONG, excerpt(line.content))
    try:
        text = line.content.decode()
    except UnicodeDecodeError:
        return BadRow(line.number, BAD_BYTES, excerpt(line.content))
    return BadRow(line.number, NUL, excerpt(line.content)) if "\0" in text else text


def excerpt(content: bytes | str) -> str:
    """The beginning of a bad row, printable, with what is not text escaped."""
    if isinstance(content, str):
        content = content[:EXCERPT_CHARS].encode(errors="backslashreplace")
    text = content[:EXCERPT_CHARS].decode(errors="backslashreplace").replace("\0", "\\x00")
    return text[:EXCERPT_CHARS]


def read_table(file: InputFile, roles: Mapping[str, str], max_row_bytes: int) -> Iterator[Row | BadRow]:
    """Rows of a table file.

    Args:
        file: CSV, TSV, JSONL or Parquet.
        roles: role to the name of its column.
        max_row_bytes: limit for the bytes of a row's values together.

    Raises:
        DataError: a gzip stream is damaged.
    """
    match file.format:
        case "jsonl":
            raw = _json_rows(file, roles, max_row_bytes)
        case "tsv":
            raw = _tsv_rows(file, roles, max_row_bytes)
        case "csv":
            raw = _csv_rows(file, roles, max_row_bytes)
        case "parquet":
            raw = _parquet_rows(file, roles)
        case "text":
            raise AssertionError("plain text has lines, not rows")
    return (checked(row, max_row_bytes) for row in raw)


def rows_of_records(records: Iterable[Mapping[str, Any]], roles: Mapping[str, str]) -> Iterator[Row | BadRow]:
    """Rows of objects that are already parsed, numbered from 1."""
    return (_record_row(number, record, roles) for number, record in enumerate(records, start=1))


def _record_row(number: int, record: Mapping[str, Any], roles: Mapping[str, str]) -> Row | BadRow:
    try:
        return Row(number, extract(record, roles))
    except RoleError as error:
        return BadRow(number, error.reason, excerpt(f"{error}: {dict(record)}"))


def extract(record: Mapping[str, Any], roles: Mapping[str, str]) -> dict[str, str]:
    """The strings that are wanted of a record; `a.b` is looked up as such, then as `b` inside `a`.

    Raises:
        RoleError: a value is missing or has the wrong type. Identifiers may be whole numbers, tags a list of strings.
    """
    return {role: _string(role, name, _lookup(record, name)) for role, name in roles.items()}


def _lookup(record: Mapping[str, Any], name: str) -> Any:
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise RoleError(MISSING_KEY, f"no {name!r}")
        value = value[part]
    return value


def _string(role: str, name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if role in ("id", "group") and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if role == "tags" and isinstance(value, list) and all(isinstance(tag, str) for tag in value):
        return ",".join(value)
    if role == "tags" and value is None:
        return ""
    raise RoleError(WRONG_TYPE, f"{name!r} is {type(value).__name__}, not a string")


def checked(row: Row | BadRow, max_row_bytes: int) -> Row | BadRow:
    """The row, or what is wrong with its values: NUL, a lone surrogate, or too many bytes."""
    if isinstance(row, BadRow):
        return row
    total = 0
    for value in row.values.values():
        if "\0" in value:
            return BadRow(row.number, NUL, excerpt(value))
        try:
            total += len(value) if value.isascii() else len(value.encode())
        except UnicodeEncodeError:
            return BadRow(row.number, BAD_BYTES, excerpt(value))
    if total > max_row_bytes:
        return BadRow(row.number, OVER_LONG, excerpt(next(iter(row.values.values()))))
    return row


def _json_rows(file: InputFile, roles: Mapping[str, str], max_row_bytes: int) -> Iterator[Row | BadRow]:
    for line in read_lines(file, _raw_limit(max_row_bytes)):
        text = decode(line)
        if isinstance(text, BadRow):
            yield text
        elif text.strip():
            yield _json_row(line.number, text, roles)


def _json_row(number: int, text: str, roles: Mapping[str, str]) -> Row | BadRow:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return BadRow(number, BAD_JSON, excerpt(text))
    if not isinstance(value, dict):
        return BadRow(number, WRONG_TYPE, excerpt(text))
    try:
        return Row(number, extract(value, roles))
    except RoleError as error:
        return BadRow(number, error.reason, excerpt(f"{error}: {text}"))


def _tsv_rows(file: InputFile, roles: Mapping[str, str], max_row_bytes: int) -> Iterator[Row | BadRow]:
    columns: tuple[str, ...] = ()
    for line in read_lines(file, _raw_limit(max_row_bytes)):
        text = decode(line)
        if line.number == 1:
            columns = header(line.content, "tsv")
        elif isinstance(text, BadRow):
            yield text
        elif text or len(columns) == 1:
            yield _fields_row(line.number, text.split("\t"), columns, roles, text)


def _fields_row(
    number: int, fields: list[str], columns: tuple[str, ...], roles: Mapping[str, str], text: str
) -> Row | BadRow:
    if len(fields) != len(columns):
        return BadRow(number, WRONG_FIELDS, excerpt(f"{len(fields)} fields, not {len(columns)}: {text}"))
    return Row(number, {role: fields[columns.index(name)] for role, name in roles.items()})


def _csv_rows(file: InputFile, roles: Mapping[str, str], max_row_bytes: int) -> Iterator[Row | BadRow]:
    """CSV records. A quote opens at the start of a field only; the lines that follow belong to the record until it closes.

    Where it never closes (within the limit, or to the end of the file), or not as it should, it spoils its own line only:
    reading goes on at the next one.
    """
    limit = _raw_limit(max_row_bytes)
    csv.field_size_limit(max(csv.field_size_limit(), 2 * limit))
    lines = _Lines(read_lines(file, limit))
    first = lines.next()
    columns = header(first.content, "csv") if first else ()
    failed = 0  # a quote that is still open at the end of a line before this one does not close
    while (line := lines.next()) is not None:
        if not line.content and len(columns) > 1:
            continue
        text = decode(line)
        if isinstance(text, BadRow):
            yield text
            continue
        record = _Record(text, lines, limit if line.number >= failed else 0)
        try:
            fields = next(csv.reader(record if '"' in text else [text], strict=True), [])
        except csv.Error as error:
            failed = max(failed, line.number + record.ahead)
            reason = "a quote that never closes" if record.is_open else error
            yield BadRow(line.number, BAD_CSV, excerpt(f"{reason}: {text}"))
            continue
        lines.drop(record.ahead)
        if record.bad is not None:
            yield BadRow(line.number, record.bad.reason, record.bad.excerpt)
        else:
            yield _fields_row(line.number, fields or [""], columns, roles, text)


class _Lines:
    """Lines that can be looked at ahead of being taken."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._ahead: deque[Line] = deque()

    def next(self) -> Line | None:
        """Take the next line; None at the end."""
        return self._ahead.popleft() if self._ahead else next(self._lines, None)

    def peek(self, index: int) -> Line | None:
        """Look at the line `index` places ahead."""
        while len(self._ahead) <= index:
            line = next(self._lines, None)
            if line is None:
                return None
            self._ahead.append(line)
        return self._ahead[index]

    def drop(self, count: int) -> None:
        """Take lines that were looked at."""
        for _ in range(count):
            self._ahead.popleft()


class _Record:
    """The lines of a CSV record as `csv.reader` asks for them, which it does while a quote is open.

    Args:
        text: the first line.
        lines: those behind it, which are looked at only.
        limit: with more characters than that, no line follows.
    """

    def __init__(self, text: str, lines: _Lines, limit: int) -> None:
        self._text, self._lines, self._limit = text, lines, limit
        self.is_open = False
        """Whether a quote was open at the end of the first line."""
        self.ahead = 0
        """Lines behind the first."""
        self.bad: BadRow | None = None
        """The first of them that cannot be read."""

    def __iter__(self) -> Iterator[str]:
        yield self._text
        self.is_open = True
        size = len(self._text)
        while size <= self._limit and (line := self._lines.peek(self.ahead)) is not None:
            self.ahead += 1
            text = decode(line)
            if isinstance(text, BadRow):
                self.bad = self.bad or text
                text = line.content.decode(errors="replace")
            size += len(text) + 1
            yield f"\n{text}"


def _parquet_rows(file: InputFile, roles: Mapping[str, str]) -> Iterator[Row | BadRow]:
    for number, record in enumerate(_parquet_records(file, roles), start=1):
        if isinstance(record, bytes):
            yield BadRow(number, BAD_BYTES, excerpt(record))
        else:
            yield _record_row(number, record, roles)


def _parquet_records(file: InputFile, roles: Mapping[str, str]) -> Iterator[dict[str, Any] | bytes]:
    """Records of the columns that are wanted; of one with a string that is not UTF-8, that string."""
    try:
        with open_parquet(file.path, file.gzipped) as table:
            existing = set(table.schema_arrow.names)
            names = {name if name in existing else name.split(".")[0] for name in roles.values()}
            for batch in table.iter_batches(batch_size=1_024, columns=sorted(names)):
                try:
                    records = batch.to_pylist()
                except UnicodeDecodeError:
                    records = [_record(batch.slice(index, 1)) for index in range(batch.num_rows)]
                yield from records
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{file.path.name} is a damaged Parquet file ({reason})") from None


def _record(row: pa.RecordBatch) -> dict[str, Any] | bytes:
    try:
        (record,) = row.to_pylist()
    except UnicodeDecodeError as error:
        return error.object
    return cast(dict[str, Any], record)


def _raw_limit(max_row_bytes: int) -> int:
    return _RAW_ROOM * max_row_bytes + 65_536
