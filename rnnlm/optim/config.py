"""Optimizer, learning-rate schedule, clipping and weight averaging."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rnnlm.config import Config


class OptimConfig(Config):
    """How gradients become new weights."""

    algorithm: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(2e-3, gt=0, le=1_000)
    """Highest learning rate of the schedule."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls from the end of warm-up to the last planned step; `constant`: it stays at `lr`."""
    warmup_share: float = Field(0.05, ge=0, lt=1)
    """Share of the planned steps over which the rate rises linearly from 0."""
    final_lr_share: float = Field(0.05, ge=0, le=1)
    """The rate at the last planned step, as a share of `lr`; a constant schedule does without."""
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.98, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    """Of the layers' matrices. AdamW takes this share of the learning rate from each weight at every update."""
    embedding_decay: float = Field(0.0, ge=0)
    """The same for embedding tables, also where the output layer shares them."""
    clip_grad_norm: float | None = Field(1.0, gt=0)
    """Gradients are scaled down to this L2 norm; `none` does not clip."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then what is validated and kept; `none`: no averaging."""
    asgd_patience: int | None = Field(None, ge=1)
    """Instead of `ema_decay`, NT-ASGD (Merity et al. 2017): once a validation is worse than the best of those more than so
    many before it, the mean of all weights from then on is what is validated and kept; `none`: no such mean."""

    @model_validator(mode="after")
    def _one_average(self) -> Self:
        if self.ema_decay is not None and self.asgd_patience is not None:
            raise ValueError("asgd_patience: excludes ema_decay: only one average of the weights is kept")
        return self
