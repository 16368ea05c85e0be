"""Where a corpus comes from and what is accepted into it."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rnnlm.config import Config
from rnnlm.text.config import NormalizeConfig


class AlignedFiles(Config):
    """Two text files, or lists of as many, whose lines belong together."""

    source: str | tuple[str, ...]
    target: str | tuple[str, ...]


class ColumnsConfig(Config):
    """Names of the columns of table files and hub sets."""

    text: str = "text"
    source: str = "source"
    target: str = "target"
    id: str | None = None
    """Column with the row's own id; without it a row is called FILE:ROW."""
    group: str | None = None
    """Text only: rows with an equal value here form one document, joined by newlines."""
    tags: str | None = None
    """Column with comma-separated labels of a row; `evaluate` reports a figure for each label."""


class DataConfig(Config):
    """The corpus: exactly one of `train` files, `hub` or `demo`."""

    train: str | tuple[str, ...] | AlignedFiles | None = None
    """Files or globs: text, TSV, CSV, JSONL, Parquet, each also gzipped; or `source` and `target` for aligned text."""
    valid: str | tuple[str, ...] | AlignedFiles | None = None
    test: str | tuple[str, ...] | AlignedFiles | None = None
    hub: str | None = None
    """Name of a set on the Hugging Face hub, or of a local folder in its layout."""
    hub_config: str | None = None
    revision: str | None = None
    hub_splits: tuple[str, str, str] = ("train", "validation", "test")
    """Names of the train, valid and test splits of the hub set; one that it lacks is cut from train by hash."""
    demo: Literal["python_docs", "translation", "summarization"] | None = None
    """A corpus that comes with the project and needs no network."""
    columns: ColumnsConfig = ColumnsConfig()
    unit: Literal["block", "file", "line"] = "block"
    """What one document is in plain text: a block between blank lines, a whole file, or a line. A row of a table is one
    document, unless `file` joins all of them."""
    normalize: NormalizeConfig = NormalizeConfig()
    valid_share: float = Field(0.02, ge=0, lt=0.5)
    """Share of train units that become valid, by hash of the normalised source, where no valid split is given."""
    test_share: float = Field(0.02, ge=0, lt=0.5)
    """The same for test."""
    gate_share: float = Field(0.5, ge=0, lt=1)
    """Share of valid that is kept for the promotion gate and never used for stopping or search; 0 uses valid for both."""
    duplicates: Literal["drop", "keep"] = "drop"
    """What happens to train units that occur a second time; counted in either case."""
    max_row_bytes: int = Field(1_000_000, ge=1)
    """A row longer than this goes to quarantine (a whole file as one document is not a row)."""
    max_reject_share: float = Field(0.05, ge=0, le=1)
    """Share of quarantined rows above which ingest fails."""
    max_source_tokens: int = Field(1_024, ge=1)
    max_target_tokens: int = Field(1_024, ge=1)
    over_length: Literal["truncate", "drop", "error"] = "truncate"
    """What tokenize does to pairs with more tokens than that (texts have no limit)."""

    def paths(self) -> list[str]:
        """The files and globs that are named as input."""
        given = [self.train, self.valid, self.test]
        sides = [
            side for one in given for side in ((one.source, one.target) if isinstance(one, AlignedFiles) else (one,))
        ]
        return [path for side in sides if side is not None for path in ((side,) if isinstance(side, str) else side)]

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = [name for name in ("train", "hub", "demo") if getattr(self, name) is not None]
        if len(given) != 1:
            have = f"got {' and '.join('data.' + name for name in given)}" if given else "none is given"
            raise ValueError(
                f"data: exactly one of data.train, data.hub and data.demo says where the corpus is ({have})"
            )
        if self.train is None and (self.valid is not None or self.test is not None):
            raise ValueError("data: data.valid and data.test go with data.train")
        return self
