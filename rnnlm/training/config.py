"""How long a training runs, over which batches, and what it keeps."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rnnlm.config import Config


class GuardConfig(Config):
    """What counts as divergence, and how often a training goes on after it, see `rnnlm.training.guard`."""

    max_divergences: int = Field(3, ge=0)
    """Times that a training goes back to its last checkpoint, leaves out the window, and goes on with half the learning rate
    and in fp32; 0: the first divergence ends it."""
    loss_spike: float | None = Field(3.0, gt=0)
    """Nats a token above the mean of the last 100 steps; `none`: only a loss that is not finite counts."""
    grad_spike: float | None = Field(10_000.0, gt=1)
    """Gradient norm as a multiple of the median of the last 100 steps; `none`: only one that is not finite counts."""


class TrainConfig(Config):
    """The training loop. A planned number of steps comes from `max_steps`, else from `epochs`."""

    epochs: float = Field(10.0, gt=0, le=100_000)
    """Passes over the training data, which also set the length of the learning-rate schedule."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps; overrides `epochs`."""
    max_minutes: float | None = Field(None, gt=0)
    """The schedule is fitted to this wall time: speed is measured over the first steps, and the planned steps are cut to
    what the time allows. Exact repetition then needs the same speed."""
    lanes: int = Field(32, ge=1)
    """Text: parallel streams of truncated backpropagation through time, over all workers."""
    bptt_length: int = Field(70, ge=1)
    """Text: tokens of a window."""
    bptt_variation: float = Field(0.0, ge=0, lt=1)
    """Text: most by which a training window is longer or shorter, as a share of `bptt_length`."""
    noise: float = Field(0.0, ge=0, le=1)
    """Text: so often a token becomes another in a training window where all that follows it is always new, and less often the
    more is known of what does (bigram Kneser-Ney noise, Xie et al. 2017)."""
    batch_tokens: int = Field(4_096, ge=1)
    """Pairs: source and target positions of one global batch, padding included."""
    micro_batch_tokens: int | None = Field(None, ge=1)
    """A worker's share of a batch is processed in pieces of at most so many positions; `none`: in one piece."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    activation_reg: float = Field(0.0, ge=0)
    """Text: what the output layer sees costs this much times its mean square."""
    temporal_activation_reg: float = Field(0.0, ge=0)
    """Text: so does its change from step to step."""
    softmax_samples: int | None = Field(None, ge=1)
    """So many tokens of the vocabulary, frequent ones more often, normalize a step's output, besides the target. Trains faster
    where the vocabulary is large, and costs quality where targets are nearly certain; models and scores are those of one
    softmax. Not with `model.softmax_cutoffs`. `none`: the whole vocabulary."""
    coverage_reg: float = Field(0.0, ge=0)
    """Pairs: attention that returns to where it was costs this much times what returns (See et al. 2017)."""
    calibrate: bool = False
    """Text: at the end the logits, less their biases, are multiplied by the factor that suits the valid split best
    (temperature scaling, Guo et al. 2017). A model with tied embeddings needs `model.layer_norm` for it."""
    validate_every: int | None = Field(None, ge=1)
    """Steps between validations; `none`: once an epoch, and at least ten times in a training."""
    patience: int | None = Field(None, ge=1)
    """Validations without a better result after which training stops; `none`: never."""
    guard: GuardConfig = GuardConfig()
    """Divergence."""
    checkpoint_every_s: float = Field(120.0, gt=0)
    """Seconds between checkpoints, besides those at validations and at the end."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints that are kept; the best is always kept too."""


class InitConfig(Config):
    """The weights that a training begins with."""

    from_: str | None = Field(None, alias="from")
    """A model whose weights and vocabulary are taken over: `models:/NAME@ALIAS`, `models:/NAME/VERSION` or the folder of a
    package; `none`: new ones."""
    freeze: tuple[Literal["embedding", "encoder", "decoder", "output"], ...] = ()
    """Parts that keep these weights; a language model's layers are its decoder. A tied output layer is embedding."""

    @model_validator(mode="after")
    def _something_to_keep(self) -> Self:
        if self.freeze and self.from_ is None:
            raise ValueError("freeze: new weights cannot be frozen; init.from names a model")
        return self


class ComputeConfig(Config):
    """What arithmetic is used. Where it runs is not part of an experiment."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 on GPUs that have it, and on CPUs with instructions for it where the model is a Transformer or has an LSTM
    layer of 64 units or more; else fp32."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of one worker; `none`: its share of the cores."""
