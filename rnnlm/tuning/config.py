"""The search space and the effort of a hyperparameter search."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rnnlm.config import Config


class Choice(Config):
    """One of the listed values."""

    kind: Literal["choice"] = "choice"
    values: tuple[Any, ...] = Field(min_length=1)


class Uniform(Config):
    """A number from `low` to `high`, rounded to an integer on request."""

    kind: Literal["uniform", "log_uniform"]
    low: float
    high: float
    integer: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low: should be less than high (got {self.low} and {self.high})")
        if self.kind == "log_uniform" and self.low <= 0:
            raise ValueError(f"low: should be greater than 0 for log_uniform (got {self.low})")
        return self


Dimension = Annotated[Choice | Uniform, Field(discriminator="kind")]


class TuneConfig(Config):
    """`tune` samples settings from `space`, trains each with ASHA cutting the losers, and writes `best.toml`."""

    trials: int = Field(0, ge=0, le=10_000)
    """Settings to try; 0: `run_all` skips the search."""
    space: dict[str, Dimension] = {}
    """Path of a setting to the values it may take, for instance `"optim.lr" = {kind = "log_uniform", low = 1e-4, high = 1e-2}`."""
    sampler: Literal["random", "optuna"] = "random"
    concurrency: int = Field(1, ge=1)
    """Trials at one time."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps of a trial that is not stopped early; `none`: as many as `train`."""
    grace_share: float = Field(0.25, gt=0, le=1)
    """Share of a trial's steps before ASHA may stop it; 1: none is stopped early."""
    reduction_factor: int = Field(3, ge=2)
    """ASHA keeps one in so many at each rung."""
