"""Units of a corpus: documents for text, pairs for sequence to sequence. Rows become units; bad rows become rejects.

| what is read | its rows | its documents |
| --- | --- | --- |
| plain text | lines | blocks between blank lines, whole files, or lines |
| a table | its rows | rows, rows with an equal value in the group column, or all rows of a file |

A bad line inside a block or a file is put aside and the document goes on without it.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from rnnlm.data.files import InputFile
from rnnlm.data.rows import BadRow, Row, decode, excerpt, read_lines, read_table

UnitKind = Literal["block", "file", "line"]


class Unit(NamedTuple):
    """One document or one pair, as ingested.

    Attributes:
        id: the row's own id, else FILE:ROW with the unit's first row, else FILE.
        source: the document, or the source of a pair; lines end in LF.
        target: None for a document.
        tags: comma-separated labels.
        raw_source: the source with the line ends that it had.
        file, row: where it begins.
        num_rows: rows that it was made of.
    """

    id: str
    source: str
    target: str | None
    tags: str
    raw_source: str
    file: str
    row: int
    num_rows: int

    @property
    def is_blank(self) -> bool:
        """Whether the document, or either side of the pair, has nothing but blanks."""
        return not self.source.strip() or (self.target is not None and not self.target.strip())

    def reject(self, reason: str) -> "Reject":
        """This unit as one that is put aside."""
        shown = self.source if self.target is None or self.source.strip() else self.target
        return Reject(self.file, self.row, reason, excerpt(shown), self.num_rows)


class TextLine(NamedTuple):
    """A line of plain text that was read, without its end; `ended`: whether it had one."""

    number: int
    text: str
    ended: bool


class Reject(NamedTuple):
    """A row, or the rows of a unit, put aside."""

    file: str
    row: int
    reason: str
    excerpt: str
    num_rows: int


@dataclass
class RowCounts:
    """Rows of one split: every row read is in a unit, rejected, or a blank line between blocks."""

    read: int = 0
    in_units: int = 0
    rejected: int = 0
    separators: int = 0
    files: dict[str, int] = field(default_factory=dict)
    """Rows of each file."""

    def count(self, file: str) -> None:
        """One more row was read."""
        self.read += 1
        self.files[file] = self.files.get(file, 0) + 1

    def check(self) -> None:
        """No row may be lost."""
        assert self.read == self.in_units + self.rejected + self.separators, f"a row was lost: {self}"


Item = Unit | Reject


def text_units(file: InputFile, kind: UnitKind, max_row_bytes: int, counts: RowCounts) -> Iterator[Item]:
    """Documents of a plain text file.

    Args:
        file: plain text.
        kind: what one document is.
        max_row_bytes: limit for a line, except where the whole file is one document.
        counts: rows are counted here as they go by.
    """
    lines = _text_lines(file, sys.maxsize - 2 if kind == "file" else max_row_bytes, counts)
    units: Iterator[Item]
    match kind:
        case "line":
            units = (item if isinstance(item, Reject) else _line_unit(file.label, item) for item in lines)
        case "block":
            units = _blocks(file.label, lines, counts)
        case "file":
            units = _whole(file.label, lines)
    for unit in units:
        _tally(unit, counts)
        yield unit


def _text_lines(file: InputFile, max_row_bytes: int, counts: RowCounts) -> Iterator[TextLine | Reject]:
    for line in read_lines(file, max_row_bytes):
        counts.count(file.label)
        text = decode(line)
        if isinstance(text, BadRow):
            yield _bad(file.label, text)
        else:
            yield TextLine(line.number, text, line.ended)


def _line_unit(label: str, line: TextLine) -> Unit:
    return Unit(f"{label}:{line.number}", line.text, None, "", line.text, label, line.number, 1)


def _bad(label: str, row: BadRow) -> Reject:
    return Reject(label, row.number, row.reason, row.excerpt, 1)


def _blocks(label: str, lines: Iterable[TextLine | Reject], counts: RowCounts) -> Iterator[Item]:
    block: list[str] = []
    first = 0
    for item in lines:
        if isinstance(item, Reject):
            yield item
            continue
        if item.text.strip():
            first = first if block else item.number
            block.append(item.text)
            continue
        counts.separators += 1
        if block:
            yield _document(f"{label}:{first}", block, label, first)
            block = []
    if block:
        yield _document(f"{label}:{first}", block, label, first)


def _whole(label: str, lines: Iterable[TextLine | Reject]) -> Iterator[Item]:
    """The file as it stands: with its blank lines, and a newline at its end where it has one."""
    texts: list[str] = []
    ended = False
    for item in lines:
        if isinstance(item, Reject):
            yield item
        else:
            texts.append(item.text)
            ended = item.ended
    if texts:
        document = _document(label, texts, label, 1)
        yield document._replace(source=document.source + "\n") if ended else document


def _document(unit_id: str, texts: list[str], label: str, row: int, tags: str = "") -> Unit:
    raw = "\n".join(texts)
    return Unit(unit_id, unix_lines(raw), None, tags, raw, label, row, len(texts))


def unix_lines(text: str) -> str:
    """The text with LF where CRLF stood."""
    return text.replace("\r\n", "\n") if "\r" in text else text


def _tally(item: Item, counts: RowCounts) -> None:
    if isinstance(item, Reject):
        counts.rejected += item.num_rows
    else:
        counts.in_units += item.num_rows


def table_units(
    label: str, rows: Iterable[Row | BadRow], *, is_text: bool, join: bool, counts: RowCounts
) -> Iterator[Item]:
    """Units of one table: pairs, or documents of a row each, or one document of all rows.

    Args:
        label: name of the file or split, for ids.
        rows: what a reader gave.
        is_text: whether the rows are documents, else pairs.
        join: whether all rows are one document.
        counts: rows are counted here as they go by.
    """
    texts: list[str] = []
    for row in rows:
        counts.count(label)
        item: Item
        if isinstance(row, BadRow):
            item = _bad(label, row)
        elif join:
            texts.append(row.values["text"])
            continue
        else:
            item = _row_unit(label, row, is_text)
        _tally(item, counts)
        yield item
    if texts:
        unit = _document(label, texts, label, 1)
        _tally(unit, counts)
        yield unit


def _row_unit(label: str, row: Row, is_text: bool) -> Unit:
    values = row.values
    raw = values["text" if is_text else "source"]
    target = None if is_text else unix_lines(values["target"])
    unit_id = values.get("id") or f"{label}:{row.number}"
    return Unit(unit_id, unix_lines(raw), target, values.get("tags", ""), raw, label, row.number, 1)


class Groups:
    """Documents of rows with an equal value in the group column, wherever they stand in a split.

    The whole split is held in memory.
    """

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}
        self._first: dict[str, tuple[str, int, str]] = {}

    def add(self, label: str, rows: Iterable[Row | BadRow], counts: RowCounts) -> Iterator[Reject]:
        """Take the rows of a table; gives those that are bad."""
        for row in rows:
            counts.count(label)
            if isinstance(row, BadRow):
                reject = _bad(label, row)
                _tally(reject, counts)
                yield reject
                continue
            group = row.values["group"]
            self._texts.setdefault(group, []).append(row.values["text"])
            self._first.setdefault(group, (label, row.number, row.values.get("tags", "")))

    def units(self, counts: RowCounts) -> Iterator[Unit]:
        """The documents, in the order in which their first rows stood."""
        for group, texts in self._texts.items():
            label, number, tags = self._first[group]
            unit = _document(group, texts, label, number, tags)
            _tally(unit, counts)
            yield unit


def aligned_units(source: InputFile, target: InputFile, max_row_bytes: int, counts: RowCounts) -> Iterator[Item]:
    """Pairs of two text files whose lines belong together. A bad line on either side spoils the pair.

    The files have the same number of lines, which `sources` checks.
    """
    pairs = zip(read_lines(source, max_row_bytes), read_lines(target, max_row_bytes), strict=True)
    for source_line, target_line in pairs:
        counts.count(source.label)
        source_text, target_text = decode(source_line), decode(target_line)
        item: Item
        if isinstance(source_text, BadRow):
            item = _bad(source.label, source_text)
        elif isinstance(target_text, BadRow):
            item = _bad(target.label, target_text)
        else:
            number = source_line.number
            item = Unit(f"{source.label}:{number}", source_text, target_text, "", source_text, source.label, number, 1)
        _tally(item, counts)
        yield item


def documents(
    files: Iterable[InputFile], roles: dict[str, str], kind: UnitKind, max_row_bytes: int, counts: RowCounts
) -> Iterator[Item]:
    """Documents of text and table files, grouped by the group column where `roles` has one."""
    groups = Groups()
    for file in files:
        if file.format == "text":
            yield from text_units(file, kind, max_row_bytes, counts)
            continue
        rows = read_table(file, roles, max_row_bytes)
        if "group" in roles:
            yield from groups.add(file.label, rows, counts)
        else:
            yield from table_units(file.label, rows, is_text=True, join=kind == "file", counts=counts)
    yield from groups.units(counts)
