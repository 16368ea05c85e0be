"""Sets of the Hugging Face hub, and local folders in its layout, through `datasets`. Nothing else imports it.

Files that a user names are not read here but by `rnnlm.data.rows`: readers of `datasets` shift the columns of a malformed
CSV file, take mixed types in JSONL, and cannot say which row was bad.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from rnnlm.config import digest
from rnnlm.data.config import DataConfig
from rnnlm.data.files import InputFile, Problems, flat_names, look_at
from rnnlm.data.rows import BAD_CSV, WRONG_FIELDS, BadRow, read_table
from rnnlm.data.sources import SPLITS
from rnnlm.errors import DataError, UnreachableError, UsageError

_BATCH_ROWS = 1_000


@dataclass(frozen=True)
class HubSplit:
    """One split of a hub set; it is downloaded and prepared when it is first iterated over.

    Attributes:
        path: name on the hub, or a local folder.
        split: the set's own name for the split.
        label: name in row ids and rejects.
        columns: column names, inner ones with a dot.
        digest: changes with the set's revision and files.
    """

    path: str
    config: str | None
    revision: str | None
    split: str
    label: str
    columns: tuple[str, ...]
    digest: str
    num_bytes: int

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """The rows, in the set's order; they stay on disk, mapped into memory.

        Raises:
            DataError: a file of the set cannot be read.
            UnreachableError: the hub does not answer.
        """
        with _explained(self.path, self.revision):
            rows = datasets.load_dataset(self.path, self.config, revision=self.revision, split=self.split)
        for batch in rows.iter(_BATCH_ROWS):
            names = list(batch)
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(names, values, strict=True))


def open_hub(data: DataConfig, base: Path) -> dict[str, HubSplit]:
    """Look a hub set up.

    Args:
        data: `hub`, `hub_config`, `revision` and `hub_splits` are used.
        base: where a relative local folder starts.

    Returns:
        The splits that the set has, as train, valid and test.

    Raises:
        UsageError: the set, its configuration, revision or train split does not exist.
        DataError: a file of a local folder is empty, not text, or a malformed table.
        UnreachableError: the hub does not answer, or is switched off and the set is not in its cache.
    """
    assert data.hub is not None
    datasets.disable_progress_bars()
    path = _resolve(data.hub, base)
    with _explained(path, data.revision):
        builder = datasets.load_dataset_builder(path, data.hub_config, revision=data.revision)
    files = {str(split): [str(file) for file in names] for split, names in (builder.config.data_files or {}).items()}
    local: dict[str, Any] = dict(_check_local(files))
    names = list(builder.info.splits or files)
    train = data.hub_splits[0]
    if train not in names:
        raise UsageError(
            f"data.hub: {data.hub} has no split {train!r}; its splits: {', '.join(names)} (data.hub_splits names them)"
        )
    identity = (local or {"files": files}) if files else {"hash": builder.hash}
    shared = (path, data.hub_config, data.revision)
    label = Path(path).name if Path(path).is_dir() else data.hub
    wanted = [(ours, theirs) for ours, theirs in zip(SPLITS, data.hub_splits, strict=True) if theirs in names]
    return {
        ours: HubSplit(
            *shared,
            theirs,
            f"{label}/{theirs}",
            _columns(builder, theirs, path, data.revision),
            digest({"identity": identity, "config": data.hub_config, "split": theirs}),
            _num_bytes(builder, theirs, files),
        )
        for ours, theirs in wanted
    }


def _resolve(hub: str, base: Path) -> str:
    local = base / Path(hub).expanduser()
    if local.is_dir():
        return str(local)
    if hub.startswith((".", "/", "~")):
        raise UsageError(f"data.hub: {local}: no such folder")
    return hub


@contextmanager
def _explained(path: str, revision: str | None) -> Iterator[None]:
    """Turn what `datasets` raises into our errors."""
    where = f"data.hub: {path}" + (f" at revision {revision}" if revision else "")
    try:
        yield
    except ConnectionError as error:
        reason = "HF_HUB_OFFLINE is set and it is not in the cache" if datasets.config.HF_HUB_OFFLINE else str(error)
        raise UnreachableError(f"{where}: the Hugging Face hub cannot be reached ({reason})") from error
    except datasets.exceptions.DatasetGenerationError as error:
        raise DataError(f"{where}: cannot be read ({_first_line(error.__cause__ or error)})") from error
    except FileNotFoundError as error:
        raise UsageError(f"{where}: no such set, or one without data files ({_first_line(error)})") from error
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"{where}: {_first_line(error)} (data.hub_config, data.revision)") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_local(files: Mapping[str, list[str]]) -> dict[str, str]:
    """Look at local files before `datasets` does, whose messages on bad ones are opaque; their digests by name."""
    problems = Problems()
    found: dict[str, str] = {}
    for split, names in files.items():
        for name in names:
            path = Path(name)
            if path.is_file():
                file = look_at(path, path.name, f"data.hub split {split}", problems)
                if file is not None:
                    found[f"{split}/{path.name}"] = file.digest
                    _check_table(file, problems)
    problems.raise_any()
    return found


def _check_table(file: InputFile, problems: Problems) -> None:
    """A malformed row would shift columns unseen."""
    if file.format not in ("csv", "tsv"):
        return
    for row in read_table(file, {}, 1 << 30):
        if isinstance(row, BadRow) and row.reason in (WRONG_FIELDS, BAD_CSV):
            problems.data.append(
                f"data.hub: {file.path}, row {row.number}: {row.reason} ({row.excerpt[:80]!r}); "
                "named as data.train, the file is read with such rows put aside"
            )
            return


def _columns(builder: Any, split: str, path: str, revision: str | None) -> tuple[str, ...]:
    """Column names, from the set's description or from its first row."""
    if builder.info.features is not None:
        return tuple(flat_names(builder.info.features))
    with _explained(path, revision):
        stream = builder.as_streaming_dataset(split=split)
        first = next(iter(stream), None)
    return () if first is None else tuple(flat_names(first))


def _num_bytes(builder: Any, split: str, files: Mapping[str, list[str]]) -> int:
    known = (builder.info.splits or {}).get(split)
    if known is not None and known.num_bytes:
        return int(known.num_bytes)
    return sum(Path(name).stat().st_size for name in files.get(split, []) if Path(name).is_file())
