"""A batch generation job."""

from pydantic import Field

from rnnlm.config import Config


class BatchConfig(Config):
    """How input files become output files."""

    text_column: str = "source"
    """Column of table files that holds the input; `text` is tried where it is absent."""
    id_column: str | None = None
    """Column with the row's own id; without it a row is called FILE:ROW."""
    shard_rows: int = Field(2_000, ge=1)
    """Rows of one output file."""
    max_source_tokens: int = Field(1_024, ge=1)
    """Rows with more input tokens are rejected."""
    max_row_bytes: int = Field(1_000_000, ge=1)
    """Rows with more input bytes are rejected."""
    min_score: float | None = None
    """Rows whose score (mean log-probability of a token, nats) is lower are flagged; `none`: no row is."""
    batch_timeout_s: float = Field(300.0, gt=0)
    """Seconds for a batch; one that takes longer is decoded row by row, and a row that does so alone is rejected."""
    in_process_rows: int = Field(5_000, ge=0)
    """Up to so many rows are generated in process, without Ray; `--workers 0` generates any number of them so."""
    max_reject_share: float | None = Field(None, ge=0, le=1)
    """Share of rejected rows above which the command ends with exit code 4, everything written; `none`: it never does."""
    max_flagged_share: float | None = Field(None, ge=0, le=1)
    """The same for flagged rows."""
