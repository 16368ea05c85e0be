"""What is measured on the test split, and what a model must beat to be promoted."""

from typing import Literal

from pydantic import Field

from rnnlm.config import Config


class EvaluateConfig(Config):
    """Figures, tables and pictures of `evaluate`."""

    split: Literal["test", "valid"] = "test"
    bleu_tokenize: Literal["13a", "none", "intl", "char"] = "13a"
    """sacreBLEU's tokenization; `none` for text that is tokenized already."""
    bleu_lowercase: bool = False
    """sacreBLEU's case-insensitive figure (`case:lc`)."""
    samples: int = Field(50, ge=0)
    """Rows of the sample table."""
    max_rows: int | None = Field(None, ge=1)
    """Score only the first so many rows of the split, and say so; `none`: all of them."""
    batch_tokens: int = Field(8_192, ge=1)
    """Positions scored together; changes speed and memory, not results."""


class RegisterConfig(Config):
    """Promotion of a model version."""

    model_name: str | None = Field(None, pattern=r"^[^/:@\s]+$")
    """Registered name; `none`: the experiment's."""
    max_rows: int | None = Field(500, ge=1)
    """Rows of the gate split that challenger and champion are compared on."""
