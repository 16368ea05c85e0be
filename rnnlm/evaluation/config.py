"""What is measured on the test split, and what a model must beat to be promoted."""

from typing import Literal

from pydantic import Field

from rnnlm.config import Config


class CacheConfig(Config):
    """The neural cache, see `rnnlm.evaluation.adaptive`."""

    size: int = Field(500, ge=1, le=100_000)
    """Positions that are remembered."""
    theta: float = Field(0.3, ge=0)
    """Sharpness: what products of features are multiplied by."""
    weight: float = Field(0.1, ge=0, lt=1)
    """Share of the cache in the mixture."""


class DynamicConfig(Config):
    """Dynamic evaluation, see `rnnlm.evaluation.adaptive`."""

    lr: float = Field(0.05, gt=0)
    """Of the step that follows each window."""
    decay: float = Field(0.001, ge=0, le=1)
    """How far each step also goes back to the trained weights, as a share of the way."""
    window: int = Field(20, ge=1)
    """Tokens between steps."""


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
    cache: CacheConfig | None = None
    """Text: score with a neural cache too; `none`: do not."""
    dynamic: DynamicConfig | None = None
    """Text: score with dynamic evaluation too; `none`: do not."""


class RegisterConfig(Config):
    """Promotion of a model version."""

    model_name: str | None = Field(None, pattern=r"^[^/:@\s]+$")
    """Registered name; `none`: the experiment's."""
    max_rows: int | None = Field(500, ge=1)
    """Rows of the gate split that challenger and champion are compared on."""
