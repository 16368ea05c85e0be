"""Where a corpus comes from, looked at before any work is done: files, a hub set, or a demo corpus."""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rnnlm.config import digest
from rnnlm.data.config import AlignedFiles, ColumnsConfig, DataConfig
from rnnlm.data.files import InputFile, Problems, count_lines, expand, labels, look_at
from rnnlm.data.rows import checked, read_table, rows_of_records
from rnnlm.data.units import Groups, Item, RowCounts, UnitKind, aligned_units, documents, table_units
from rnnlm.errors import DataError, UsageError
from rnnlm.storage import sha256_file

SPLITS = ("train", "valid", "test")
_TEXT_DEMOS = ("python_docs",)
_DEMO_BYTES = {"translation": 3_058_642, "summarization": 6_752_269}
"""Bytes of the texts of demo corpora that take seconds to make."""


class Records(Protocol):
    """One split of a set that is already parsed, such as one of the hub's."""

    @property
    def label(self) -> str:
        """Name in row ids and rejects."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names, inner ones with a dot; empty where they are not known."""
        ...

    @property
    def digest(self) -> str:
        """Says whether the content is the same as another time."""
        ...

    @property
    def num_bytes(self) -> int:
        """About how large it is."""
        ...

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """The rows."""
        ...


OpenHub = Callable[[DataConfig, Path], Mapping[str, Records]]
"""Opens `data.hub` and gives the splits that it has, as train, valid and test."""
DemoRows = Callable[[Any, Any], Iterable[Mapping[str, Any]]]
"""Rows of a demo corpus, by its name and split."""


class Origin(Protocol):
    """What one split is read from."""

    def items(self, data: DataConfig, counts: RowCounts) -> Iterator[Item]:
        """Its units and rejects, in order; rows are counted in `counts`."""
        ...


@dataclass(frozen=True)
class FileOrigin:
    """Text or table files."""

    files: tuple[InputFile, ...]
    roles: dict[str, str]
    is_text: bool

    def items(self, data: DataConfig, counts: RowCounts) -> Iterator[Item]:
        """Units and rejects of all files."""
        if self.is_text:
            return documents(self.files, self.roles, data.unit, data.max_row_bytes, counts)
        return self._pairs(data, counts)

    def _pairs(self, data: DataConfig, counts: RowCounts) -> Iterator[Item]:
        for file in self.files:
            rows = read_table(file, self.roles, data.max_row_bytes)
            yield from table_units(file.label, rows, is_text=False, join=False, counts=counts)


@dataclass(frozen=True)
class AlignedOrigin:
    """Pairs of text files whose lines belong together."""

    pairs: tuple[tuple[InputFile, InputFile], ...]

    def items(self, data: DataConfig, counts: RowCounts) -> Iterator[Item]:
        """Units and rejects of all pairs of files."""
        for source, target in self.pairs:
            yield from aligned_units(source, target, data.max_row_bytes, counts)


@dataclass(frozen=True)
class RecordsOrigin:
    """Rows that are already parsed."""

    label: str
    records: Iterable[Mapping[str, Any]]
    roles: dict[str, str]
    is_text: bool

    def items(self, data: DataConfig, counts: RowCounts) -> Iterator[Item]:
        """Units and rejects of all rows."""
        rows = (checked(row, data.max_row_bytes) for row in rows_of_records(self.records, self.roles))
        if "group" in self.roles:
            groups = Groups()
            yield from groups.add(self.label, rows, counts)
            yield from groups.units(counts)
            return
        kind: UnitKind = data.unit if self.is_text else "line"
        yield from table_units(self.label, rows, is_text=self.is_text, join=kind == "file", counts=counts)


@dataclass(frozen=True)
class Sources:
    """Everything that `ingest` reads.

    Attributes:
        splits: the given ones of train, valid and test.
        digests: name of each input to its SHA-256, for the record's identity.
        num_bytes: about how large the text is, decompressed; 0 where that is not known.
    """

    splits: dict[str, Origin]
    digests: dict[str, str]
    num_bytes: int
    is_text: bool


def check_sources(
    data: DataConfig,
    *,
    is_text: bool,
    base: Path,
    open_hub: OpenHub | None = None,
    demo_rows: DemoRows | None = None,
) -> Sources:
    """Look at everything that the configuration names, without reading it all.

    Args:
        data: where the corpus is.
        is_text: whether it is documents, else pairs.
        base: where relative paths start.
        open_hub: opens a hub set; needed for `data.hub`.
        demo_rows: gives the rows of a demo corpus; needed for `data.demo`.

    Raises:
        UsageError: a file, column or set is missing, or aligned files have different numbers of lines; with all
            problems at once.
        DataError: a file is empty or not text as a whole.
        UnreachableError: the hub does not answer.
    """
    problems = Problems()
    if data.demo is not None:
        assert demo_rows is not None, "a demo corpus needs demo_rows"
        return _demo_sources(data.demo, is_text, demo_rows)
    if data.hub is not None:
        assert open_hub is not None, "a hub set needs open_hub"
        sources = _hub_sources(data, is_text, open_hub(data, base), problems)
    else:
        sources = _file_sources(data, is_text, base, problems)
    problems.raise_any()
    return sources


def roles_of(columns: ColumnsConfig, *, is_text: bool) -> dict[str, str]:
    """What each wanted column is: role to its name."""
    roles = {"text": columns.text} if is_text else {"source": columns.source, "target": columns.target}
    optional = {"id": columns.id, "tags": columns.tags} | ({"group": columns.group} if is_text else {})
    return roles | {role: name for role, name in optional.items() if name is not None}


def _demo_sources(name: str, is_text: bool, demo_rows: DemoRows) -> Sources:
    if is_text != (name in _TEXT_DEMOS):
        raise UsageError(f"data.demo: {name!r} has no {'documents' if is_text else 'source/target pairs'}")
    roles = ({"text": "text"} if is_text else {"source": "source", "target": "target"}) | {"id": "id", "tags": "tags"}
    splits: dict[str, Origin] = {
        split: RecordsOrigin(f"{name}/{split}", _DemoSplit(demo_rows, name, split), roles, is_text) for split in SPLITS
    }
    return Sources(splits, {f"demo/{name}": _code_digest(demo_rows)}, _demo_bytes(name, demo_rows), is_text)


def _demo_bytes(name: str, demo_rows: DemoRows) -> int:
    if name in _DEMO_BYTES:
        return _DEMO_BYTES[name]
    return sum(len(row["text"].encode()) for split in SPLITS for row in demo_rows(name, split))


@dataclass(frozen=True)
class _DemoSplit:
    """Rows that are made when they are asked for, as that takes seconds."""

    demo_rows: DemoRows
    name: str
    split: str

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.demo_rows(self.name, self.split))


def _code_digest(function: DemoRows) -> str:
    """SHA-256 of the package that makes the rows, and the Python release, which holds the texts of one of them."""
    folder = Path(inspect.getfile(function)).parent
    code = {path.name: sha256_file(path) for path in sorted(folder.glob("*.py"))}
    return digest({"code": code, "python": list(sys.version_info[:3])})


def _hub_sources(data: DataConfig, is_text: bool, found: Mapping[str, Records], problems: Problems) -> Sources:
    roles = roles_of(data.columns, is_text=is_text)
    splits: dict[str, Origin] = {}
    for split, records in found.items():
        if records.columns:
            _check_columns(records.columns, roles, f"data.hub: {records.label}", problems)
        splits[split] = RecordsOrigin(records.label, records, roles, is_text)
    digests = {f"hub/{records.label}": records.digest for records in found.values()}
    return Sources(splits, digests, sum(records.num_bytes for records in found.values()), is_text)


def _file_sources(data: DataConfig, is_text: bool, base: Path, problems: Problems) -> Sources:
    splits: dict[str, Origin] = {}
    digests: dict[str, str] = {}
    total = 0
    for split in SPLITS:
        given = getattr(data, split)
        if given is None:
            continue
        key = f"data.{split}"
        if isinstance(given, AlignedFiles):
            pairs = _aligned(given, base, key, problems, is_text)
            splits[split] = AlignedOrigin(tuple(pairs))
            files = [file for pair in pairs for file in pair]
        else:
            files = _tables(given, base, key, problems, data, is_text)
            splits[split] = FileOrigin(tuple(files), roles_of(data.columns, is_text=is_text), is_text)
        digests |= {f"{split}/{number}/{file.label}": file.digest for number, file in enumerate(files)}
        total += sum(file.text_bytes for file in files)
    return Sources(splits, digests, total, is_text)


def _inspect_all(
    paths: Sequence[Path], names: Sequence[str], key: str, problems: Problems, *, as_text: bool
) -> list[InputFile]:
    looked = (look_at(path, name, key, problems, as_text=as_text) for path, name in zip(paths, names, strict=True))
    return [file for file in looked if file is not None]


def _tables(
    given: str | tuple[str, ...], base: Path, key: str, problems: Problems, data: DataConfig, is_text: bool
) -> list[InputFile]:
    paths = expand(given, base, key, problems)
    files = _inspect_all(paths, labels(paths), key, problems, as_text=False)
    roles = roles_of(data.columns, is_text=is_text)
    for file in files:
        if file.format != "text":
            _check_columns(file.columns, roles, f"{key}: {file.path}", problems)
        elif not is_text:
            remedy = "name a TSV, CSV, JSONL or Parquet file, or two aligned text files"
            problems.usage.append(
                f"{key}: {file.path} is plain text, which has no pairs; {remedy} ({key}.source and {key}.target)"
            )
        else:
            problems.usage.extend(
                f"{key}: {file.path} is plain text, which has no columns, so data.columns.{role} does not go with it"
                for role in roles
                if role != "text"
            )
    return files


def _check_columns(columns: Sequence[str], roles: dict[str, str], where: str, problems: Problems) -> None:
    shown = ", ".join(columns)
    for role, name in roles.items():
        if name not in columns:
            problems.usage.append(
                f"{where} has no column {name!r}; its columns: {shown} (data.columns.{role}=NAME picks one)"
            )
        elif columns.count(name) > 1:
            problems.usage.append(f"{where} has more than one column {name!r}; its columns: {shown}")


def _aligned(
    given: AlignedFiles, base: Path, key: str, problems: Problems, is_text: bool
) -> list[tuple[InputFile, InputFile]]:
    if is_text:
        problems.usage.append(f"{key}: source and target files are pairs, which this task does not learn from")
        return []
    before = len(problems.usage) + len(problems.data)
    paths = [expand(getattr(given, side), base, f"{key}.{side}", problems) for side in ("source", "target")]
    names, count = labels([*paths[0], *paths[1]]), len(paths[0])
    sources = _inspect_all(paths[0], names[:count], f"{key}.source", problems, as_text=True)
    targets = _inspect_all(paths[1], names[count:], f"{key}.target", problems, as_text=True)
    if len(problems.usage) + len(problems.data) > before:
        return []
    if len(sources) != len(targets):
        problems.usage.append(f"{key}: {len(sources)} source files but {len(targets)} target files")
        return []
    for source, target in zip(sources, targets, strict=True):
        _check_aligned(source, target, key, problems)
    return list(zip(sources, targets, strict=True))


def _check_aligned(source: InputFile, target: InputFile, key: str, problems: Problems) -> None:
    if "parquet" in (source.format, target.format):
        problems.usage.append(
            f"{key}: aligned files are plain text, one line a row; Parquet files have columns instead"
        )
        return
    try:
        counts = count_lines(source), count_lines(target)
    except DataError as error:
        problems.data.append(f"{key}: {error}")
        return
    if counts[0] != counts[1]:
        problems.usage.append(
            f"{key}: {source.path} has {counts[0]:,} lines but {target.path} has {counts[1]:,}; "
            "line N of one belongs to line N of the other"
        )
