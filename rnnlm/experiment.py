"""The whole typed tree of an experiment: what is learned, from what, and how it is judged.

An experiment file states only what differs from its task's defaults, which are the classes below. Where things run
(address, workers, store, tracking server) is not part of an experiment.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rnnlm.batch.config import BatchConfig
from rnnlm.config import Config, apply_overrides, merge, read_toml, unset
from rnnlm.data.config import DataConfig
from rnnlm.decoding.config import DecodeConfig
from rnnlm.errors import ConfigError
from rnnlm.evaluation.config import EvaluateConfig, RegisterConfig
from rnnlm.models.config import LanguageModelConfig, ModelConfig, Seq2SeqConfig, TransformerConfig
from rnnlm.optim.config import OptimConfig
from rnnlm.text.config import NormalizeConfig, TokenizerConfig
from rnnlm.training.config import ComputeConfig, InitConfig, TrainConfig
from rnnlm.tuning.config import TuneConfig

Task = Literal["text", "translate", "summarize"]


class Experiment(Config):
    """One corpus, one task, one recipe."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the MLflow experiment, of the folder in the store, and by default of the registered model."""
    task: Task
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the initial weights, the order of the data, dropout, splits and samples."""
    data: DataConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig
    init: InitConfig = InitConfig()
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    compute: ComputeConfig = ComputeConfig()
    tune: TuneConfig = TuneConfig()
    decode: DecodeConfig = DecodeConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    register_: RegisterConfig = Field(RegisterConfig(), alias="register")
    generate: BatchConfig = BatchConfig()

    @property
    def is_text(self) -> bool:
        """Whether the corpus is documents (else it is source/target pairs)."""
        return self.task == "text"

    @property
    def model_name(self) -> str:
        """Name under which the model is registered."""
        return self.register_.model_name or self.name

    @property
    def positions_per_step(self) -> int:
        """Positions of one training step, padding included, over all workers."""
        return self.train.lanes * self.train.bptt_length if self.is_text else self.train.batch_tokens

    def settings(self, stage: str) -> dict[str, Any]:
        """The part of the experiment that determines what a stage writes, and so is part of its identity."""
        limits = {"max_source_tokens", "max_target_tokens", "over_length"}
        data = self.data.plain()
        files = {"train", "valid", "test"}  # known by their content, not by their names
        training: dict[str, Any] = {
            "model": self.model.plain(),
            "train": self.train.plain(),
            "optim": self.optim.plain(),
        }
        training |= {"compute": self.compute.plain(), "seed": self.seed, "task": self.task}
        if self.init.from_ is not None:
            # Which model that is now is one of the inputs.
            training["freeze"] = sorted(self.init.freeze)
        match stage:
            case "ingest":
                kept = {key: value for key, value in data.items() if key not in limits | files}
                return {"data": kept, "seed": self.seed, "task": self.task}
            case "tokenize_corpus":
                kept = {key: data[key] for key in sorted(limits)}
                return {"data": kept, "tokenizer": self.tokenizer.plain(), "seed": self.seed, "task": self.task}
            case "train":
                return training
            case "tune":
                return training | {"tune": self.tune.plain()}
            case "evaluate":
                return {"evaluate": self.evaluate.plain(), "decode": self.decode.effective(), "task": self.task}
            case "register":
                return {
                    "model_name": self.model_name,
                    "register": self.register_.plain(),
                    "decode": self.decode.plain(),
                }
        raise ValueError(f"no stage {stage!r}")

    def _can_be_calibrated(self) -> None:
        if not self.is_text:
            raise ValueError(f"train.calibrate: should be false for task {self.task!r}")
        model = self.model
        if isinstance(model, LanguageModelConfig) and model.tie_embeddings and not model.layer_norm:
            raise ValueError("train.calibrate: needs model.layer_norm = true or model.tie_embeddings = false")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        expected = "language_model" if self.is_text else "seq2seq"
        if self.model.kind not in (expected, "transformer"):
            raise ValueError(
                f"model.kind: task {self.task!r} needs {expected!r} or 'transformer' (got {self.model.kind!r})"
            )
        if isinstance(self.model, TransformerConfig) and (self.model.encoder_layers == 0) != self.is_text:
            wanted = "0" if self.is_text else "at least 1"
            raise ValueError(
                f"model.encoder_layers: task {self.task!r} needs {wanted} (got {self.model.encoder_layers})"
            )
        if isinstance(self.model, Seq2SeqConfig) and self.model.copy_source and self.model.attention == "none":
            raise ValueError('model.copy_source: copying needs attention (got attention = "none")')
        has_clusters = not isinstance(self.model, Seq2SeqConfig) and bool(self.model.softmax_cutoffs)
        if self.train.softmax_samples is not None and has_clusters:
            raise ValueError("train.softmax_samples: does not go with model.softmax_cutoffs")
        if self.train.calibrate:
            self._can_be_calibrated()
        if self.is_text and "encoder" in self.init.freeze:
            raise ValueError("init.freeze: a language model has no encoder")
        if self.tune.trials and not self.tune.space:
            raise ValueError("tune.space: is required where tune.trials is greater than 0")
        return self


def task_defaults(task: Task, model_kind: str | None = None) -> dict[str, Any]:
    """The recipe of a task, as a plain tree that an experiment file is laid over.

    Args:
        task: what is learned.
        model_kind: `transformer`, or None for the task's recurrent model.
    """
    match task:
        case "text":
            parts: dict[str, Config] = {
                "model": LanguageModelConfig(),
                "train": TrainConfig(),
                "decode": DecodeConfig(method="sample", temperature=0.8, top_p=0.95, max_length=200),
            }
        case "translate":
            parts = {
                "model": Seq2SeqConfig(),
                "data": DataConfig.model_construct(normalize=NormalizeConfig(unicode="nfc", whitespace="collapse")),
                "train": TrainConfig(label_smoothing=0.1),
            }
        case "summarize":
            parts = {
                "model": Seq2SeqConfig(),
                "data": DataConfig.model_construct(normalize=NormalizeConfig(unicode="nfc", whitespace="collapse")),
                "train": TrainConfig(label_smoothing=0.1),
            }
    if model_kind == "transformer":
        parts["model"] = (
            TransformerConfig() if task == "text" else TransformerConfig(encoder_layers=4, copy_source=True)
        )
    return {name: part.model_dump(mode="json", exclude_unset=name == "data") for name, part in parts.items()}


def build(values: dict[str, Any], overrides: Sequence[str] = (), origin: str = "") -> Experiment:
    """An experiment from a plain tree and overrides.

    Raises:
        ConfigError: with every mistake.
    """
    values = apply_overrides(Experiment, unset(Experiment, values), overrides)
    task = values.get("task")
    if task not in ("text", "translate", "summarize"):
        problem = "is required" if task is None else f"should be 'text', 'translate' or 'summarize' (got {task!r})"
        raise ConfigError([f"task: {problem}"], origin)
    model = values.get("model")
    kind = model.get("kind") if isinstance(model, dict) else None
    return Experiment.parse(merge(task_defaults(task, kind), values), origin)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """An experiment from its file and overrides. Without `name` the experiment is called after the file.

    Raises:
        UsageError: the file cannot be read.
        ConfigError: with every mistake.
    """
    values = {"name": Path(path).stem, **read_toml(path)}
    return build(values, overrides, str(path))
