"""From settings, tokens and a model to a training that can start."""

import math
from collections.abc import Mapping
from functools import partial

import torch

from rnnlm.data.lm_batches import LmBatches
from rnnlm.data.noise import KneserNeyNoise
from rnnlm.data.ragged import Ragged, count_ids
from rnnlm.data.seq2seq_batches import PairBatches
from rnnlm.models.build import build_model
from rnnlm.models.config import ModelConfig
from rnnlm.models.language_model import LanguageModel
from rnnlm.models.seq2seq import Seq2Seq
from rnnlm.optim.build import build_average, build_optimizer
from rnnlm.optim.config import OptimConfig
from rnnlm.text.special import EOS_ID
from rnnlm.training import guard
from rnnlm.training.arithmetic import Arithmetic, resolve
from rnnlm.training.budget import Plan
from rnnlm.training.collective import Alone, Collective
from rnnlm.training.config import ComputeConfig, TrainConfig
from rnnlm.training.graphs import StepGraphs
from rnnlm.training.history import History
from rnnlm.training.state import TrainingRun, TrainingState, validation_interval
from rnnlm.training.tasks import LanguageModelTask, Seq2SeqTask, Task, TaskSettings, valid_lanes
from rnnlm.training.tracking import MetricStride

COUNTED_TOKENS = 1 << 24
"""Of a greater corpus: what the first biases are counted on."""


def seeded_model(config: ModelConfig, vocab_size: int, seed: int) -> LanguageModel | Seq2Seq:
    """A model whose first weights are a function of the seed. The global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(config, vocab_size)


@torch.no_grad()
def start_at_frequencies(model: LanguageModel | Seq2Seq, train_tokens: Mapping[str, Ragged]) -> None:
    """Give the output layer the biases with which it tells how frequent each token is: b_v = log p(v), less their mean.

    From zero they take thousands of steps to get there, as Adam moves each by about the learning rate in a step: after four epochs
    of Penn Treebank perplexity on valid is 2 % (own table) to 6 % (shared, normalized) lower from here (docs/log.md).

    One is added to every count (Laplace), and a cluster has the tokens of all that are in it.

    Args:
        model: new; changed in place.
        train_tokens: columns of the train split, `text`, or `source` and `target`.
    """
    is_text = isinstance(model, LanguageModel)
    column = train_tokens["text" if is_text else "target"]
    counts = count_ids(column.values, model.vocab_size, COUNTED_TOKENS)
    if not is_text:
        counts[EOS_ID] += round(len(column) * counts.sum() / max(1, column.num_tokens))
    counts_V = torch.from_numpy(counts + 1.0)
    mean = counts_V.log().mean()
    model.output_bias.copy_(counts_V.log() - mean)
    if isinstance(model, LanguageModel) and model.clusters is not None:
        sums = [counts_V[start:stop].sum() for start, stop in model.clusters.bounds(model.vocab_size)]
        model.cluster_bias.copy_(torch.stack(sums).log() - mean)


def build_run(
    model: LanguageModel | Seq2Seq,
    *,
    train_tokens: Mapping[str, Ragged],
    valid_tokens: Mapping[str, Ragged] | None,
    train: TrainConfig,
    optim: OptimConfig,
    compute: ComputeConfig,
    seed: int,
    collective: Collective | None = None,
    device: str | torch.device = "cpu",
) -> TrainingRun:
    """A training before its first step. Collective: all workers make it with the same arguments but their device.

    Args:
        model: with its first weights; moved to the device, and overwritten by worker 0's weights.
        train_tokens: columns of the train split, `text`, or `source` and `target`.
        valid_tokens: the same of the valid split; None or no rows: there is no validation.
        train: length, batches, validation.
        optim: optimizer, schedule, averaging.
        compute: precision and threads.
        seed: of the data's order and of dropout.
        collective: the workers; None: this one alone.
        device: of this worker.

    Raises:
        DataError: the train split is too small for such batches.
    """
    collective = collective or Alone()
    arithmetic = resolve(compute, device, model)
    model.to(arithmetic.device)
    with torch.no_grad():
        collective.broadcast(list(model.parameters()))
    task = build_task(
        model, train_tokens, valid_tokens, train=train, seed=seed, collective=collective, arithmetic=arithmetic
    )
    return TrainingRun(
        task=task,
        optimizer=build_optimizer(model, optim),
        average=build_average(model, optim),
        collective=collective,
        arithmetic=arithmetic,
        train=train,
        optim=optim,
        seed=seed,
        state=first_state(train, task.steps_per_epoch()),
        history=History(),
        check=partial(guard.check, settings=train.guard),
    )


def build_task(
    model: LanguageModel | Seq2Seq,
    train_tokens: Mapping[str, Ragged],
    valid_tokens: Mapping[str, Ragged] | None,
    *,
    train: TrainConfig,
    seed: int,
    collective: Collective,
    arithmetic: Arithmetic,
) -> Task:
    """The task of a model, over this worker's share of the data."""
    settings = TaskSettings(
        seed=seed,
        label_smoothing=train.label_smoothing,
        activation_reg=train.activation_reg,
        temporal_activation_reg=train.temporal_activation_reg,
        softmax_samples=train.softmax_samples,
        coverage_reg=train.coverage_reg,
        micro_batch_tokens=train.micro_batch_tokens,
        arithmetic=arithmetic,
        graphs=StepGraphs(model, arithmetic, seed) if _can_be_recorded(model, arithmetic) else None,
    )
    if valid_tokens is not None and any(not column.num_tokens for column in valid_tokens.values()):
        valid_tokens = None
    if isinstance(model, LanguageModel):
        return _language_model_task(model, train_tokens, valid_tokens, train, settings, collective)
    return _seq2seq_task(model, train_tokens, valid_tokens, train, settings, collective)


def _can_be_recorded(model: LanguageModel | Seq2Seq, arithmetic: Arithmetic) -> bool:
    """Whether steps can be CUDA graphs. How many tokens fall into a cluster of the vocabulary is known only afterwards."""
    has_clusters = isinstance(model, LanguageModel) and model.clusters is not None
    return arithmetic.device.type == "cuda" and not has_clusters


def _language_model_task(
    model: LanguageModel,
    train_tokens: Mapping[str, Ragged],
    valid_tokens: Mapping[str, Ragged] | None,
    train: TrainConfig,
    settings: TaskSettings,
    collective: Collective,
) -> LanguageModelTask:
    def batches(
        tokens: Ragged, lanes: int, seed: int, variation: float, noise: KneserNeyNoise | None = None
    ) -> LmBatches:
        return LmBatches(
            tokens,
            lanes=lanes,
            bptt_length=train.bptt_length,
            bptt_variation=variation,
            seed=seed,
            rank=collective.rank,
            world_size=collective.world_size,
            noise=noise,
        )

    tokens = train_tokens["text"]
    noise = KneserNeyNoise.from_corpus(tokens, model.vocab_size, train.noise, settings.seed) if train.noise else None
    valid = valid_tokens["text"] if valid_tokens else None
    # A single token cannot be laid out as a lane.
    has_valid = valid is not None and valid.num_tokens > 1
    return LanguageModelTask(
        model,
        batches(tokens, train.lanes, settings.seed, train.bptt_variation, noise),
        batches(valid, valid_lanes(valid.num_tokens, train.bptt_length), 0, 0.0) if valid and has_valid else None,
        settings,
        num_lanes=train.lanes,
        num_valid_tokens=valid.num_tokens if valid and has_valid else 0,
    )


def _seq2seq_task(
    model: Seq2Seq,
    train_tokens: Mapping[str, Ragged],
    valid_tokens: Mapping[str, Ragged] | None,
    train: TrainConfig,
    settings: TaskSettings,
    collective: Collective,
) -> Seq2SeqTask:
    def batches(tokens: Mapping[str, Ragged], seed: int) -> PairBatches:
        return PairBatches(
            tokens["source"],
            tokens["target"],
            batch_tokens=train.batch_tokens,
            seed=seed,
            rank=collective.rank,
            world_size=collective.world_size,
        )

    target = valid_tokens["target"] if valid_tokens else None
    return Seq2SeqTask(
        model,
        batches(train_tokens, settings.seed),
        batches(valid_tokens, 0) if valid_tokens else None,
        settings,
        num_valid_tokens=target.num_tokens + len(target) if target else 0,
    )


def first_state(train: TrainConfig, steps_per_epoch: int) -> TrainingState:
    """Where a training starts: its planned steps, and from them how often it validates and logs."""
    steps = train.max_steps or max(1, math.ceil(train.epochs * steps_per_epoch))
    is_timed = train.max_minutes is not None
    return TrainingState(
        plan=Plan(steps),
        max_steps=steps,
        validate_every=validation_interval(train, steps_per_epoch, steps),
        stride=None if is_timed else MetricStride.for_steps(steps).stride,
    )
