"""Training and loading in a few lines of Python, in memory, without Ray and MLflow."""

import hashlib
import math
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnnlm import experiment as experiments
from rnnlm.data.ragged import Ragged
from rnnlm.decoding.generator import Generator, Task
from rnnlm.errors import DataError, UsageError
from rnnlm.evaluation.calibration import best_logit_scale
from rnnlm.experiment import Experiment
from rnnlm.models.build import num_parameters
from rnnlm.models.language_model import LanguageModel
from rnnlm.package import PACKAGE, load_package
from rnnlm.text.normalize import normalize
from rnnlm.text.tokenizer import Tokenizer
from rnnlm.training.build import build_run, seeded_model, start_at_frequencies
from rnnlm.training.guard import Divergence
from rnnlm.training.loop import training_steps
from rnnlm.training.state import StepReport, TrainingRun, export_weights

Pair = tuple[str, str]

_VALID_SHARE = 0.05
_LEAST_ROWS_WITH_VALID = 20
_FLOPS_PER_SECOND = 2e10
"""Arithmetic that a plain CPU does in training small models; it decides sizes only."""
_WANTED_EPOCHS = 12
"""Passes over the data that the size of the model should leave time for."""
_HIDDEN_SIZES = (512, 384, 256, 192, 128)
_ONE_THREAD_SIZE = 256
"""Up to this hidden size a step is too short for a second thread to help; where other programs run, it hurts a lot."""


def fit(
    data: Iterable[str] | Iterable[Pair],
    task: Task = "text",
    minutes: float = 2.0,
    seed: int = 0,
    *,
    overrides: Sequence[str] = (),
) -> Generator:
    """Train a generator on what is in memory. Vocabulary and model are sized to the data and the time.

    A small share of the rows (by hash, so that equal sources stay together) is kept for validation; the weights with the
    best validation are the ones that are returned. So they are, with a `RuntimeWarning`, where the training diverges after one.

    Args:
        data: for `text`, lines or documents; for `translate` and `summarize`, pairs (source, target).
        task: `text`, `translate` or `summarize`.
        minutes: wall time of the training; preparing the data comes on top.
        seed: of weights, data order, dropout and the validation split.
        overrides: settings of an experiment that differ from what is chosen here, as `path=value`: `optim.lr=3e-4`.

    Raises:
        UsageError: an argument that makes no sense; the message says which and what is allowed.
        DataError: there is nothing to learn from.
        RnnlmError: the training diverges before the first validation.
    """
    if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not 0 < minutes < math.inf:
        raise UsageError(f"minutes: should be a number greater than 0 (got {minutes!r})")
    if task not in ("text", "translate", "summarize"):
        raise UsageError(f"task: should be 'text', 'translate' or 'summarize' (got {task!r})")
    rows = _rows(data, task)
    experiment = _experiment(rows, task, minutes, seed, overrides)
    rows = _normalized(rows, experiment)
    train, valid = _divide(rows, experiment.seed)
    settings = experiment.tokenizer
    tokenizer = Tokenizer.train(
        (text for row in train for text in row),
        kind=settings.kind,
        vocab_size=settings.vocab_size,
        min_frequency=settings.min_frequency,
    )
    columns = [_tokens(part, tokenizer, experiment) for part in (train, valid)]
    threads, products = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        return _train(experiment, tokenizer, *columns)
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(products)


def load(path: str | Path) -> Generator:
    """The generator in a model package, or in a downloaded MLflow model that holds one.

    Raises:
        UsageError: there is no package, or its format is unknown to this release.
        RnnlmError: a file is missing or damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder")
    if not (path / PACKAGE).exists():
        inside = sorted(path.glob(f"*/{PACKAGE}")) + sorted(path.glob(f"*/*/{PACKAGE}"))
        if len(inside) == 1:
            return load_package(inside[0].parent)
    return load_package(path)


def _rows(data: Iterable[Any], task: Task) -> list[tuple[str, ...]]:
    """Rows of one text or of a pair, blank ones left out.

    Raises:
        UsageError: a row of the wrong type; DataError: no row is left.
    """
    if isinstance(data, str | bytes | Mapping) or not isinstance(data, Iterable):
        raise UsageError(f"data: should be a list of {_wanted(task)} (got {type(data).__name__})")
    rows = []
    for place, row in enumerate(data):
        parts = (row,) if task == "text" else tuple(row) if isinstance(row, tuple | list) else ()
        if len(parts) != (1 if task == "text" else 2) or not all(isinstance(part, str) for part in parts):
            raise UsageError(
                f"data: row {place} should be one of {_wanted(task)} (got {type(row).__name__} {row!r:.60})"
            )
        if all(part.strip() for part in parts):
            rows.append(parts)
    if not rows:
        raise DataError("data: there is nothing to learn from: every row is blank, or there is none")
    return rows


def _wanted(task: Task) -> str:
    return "strings" if task == "text" else "pairs (source, target) of strings"


def _experiment(
    rows: Sequence[tuple[str, ...]], task: Task, minutes: float, seed: int, overrides: Sequence[str]
) -> Experiment:
    """A whole experiment, sized to the data and the time."""
    num_bytes = sum(len(text.encode("utf-8", "replace")) for row in rows for text in row)
    vocab_size = min(max(num_bytes // 80, 320), 8_000)
    num_tokens = num_bytes / 3.5
    hidden_size = _hidden_size(task, vocab_size, num_tokens, minutes)
    if task == "text":
        bptt_length = 70 if num_tokens > 200_000 else 35
        lanes = int(min(max(num_tokens / bptt_length / 50, 2), 32))
        parts: dict[str, Any] = {
            "model": {"embedding_size": hidden_size // 2, "hidden_size": hidden_size},
            "train": {"lanes": lanes, "bptt_length": bptt_length},
        }
    else:
        batch_tokens = int(min(max(num_tokens / 50, 256), 4_096))
        parts = {
            "model": {"embedding_size": hidden_size, "hidden_size": hidden_size},
            "train": {"batch_tokens": batch_tokens},
        }
    parts["compute"] = {"threads": 1 if hidden_size <= _ONE_THREAD_SIZE else None}
    parts["train"] |= {"max_minutes": minutes, "epochs": 60.0, "patience": 6}
    parts["model"]["kind"] = "language_model" if task == "text" else "seq2seq"
    values = {
        "name": "fit",
        "task": task,
        "seed": seed,
        "data": {"train": "in memory"},
        "tokenizer": {"vocab_size": vocab_size},
        "optim": {"lr": 3e-3},
        **parts,
    }
    return experiments.build(values, overrides, "fit")


def _hidden_size(task: Task, vocab_size: int, num_tokens: float, minutes: float) -> int:
    """The greatest size that leaves time for the wanted passes over the data."""
    matrices = 12 if task == "text" else 25
    for size in _HIDDEN_SIZES:
        num_weights = matrices * size**2 + vocab_size * size
        if 6 * num_weights * num_tokens * _WANTED_EPOCHS <= _FLOPS_PER_SECOND * 60 * minutes:
            return size
    return _HIDDEN_SIZES[-1]


def _normalized(rows: Sequence[tuple[str, ...]], experiment: Experiment) -> list[tuple[str, ...]]:
    options = experiment.data.normalize.model_dump()
    return [tuple(normalize(text, **options) for text in row) for row in rows]


def _divide(rows: Sequence[tuple[str, ...]], seed: int) -> tuple[Sequence[tuple[str, ...]], Sequence[tuple[str, ...]]]:
    """Train and validation rows, by hash of the source; none for validation where there are few."""
    if len(rows) < _LEAST_ROWS_WITH_VALID:
        return rows, ()
    train: list[tuple[str, ...]] = []
    valid: list[tuple[str, ...]] = []
    for row in rows:
        digest = hashlib.blake2b(f"{seed}\0{row[0]}".encode(), digest_size=8).digest()
        is_valid = int.from_bytes(digest, "big") < _VALID_SHARE * 2**64
        (valid if is_valid else train).append(row)
    return (train, valid) if train and valid else (rows, ())


def _tokens(rows: Sequence[tuple[str, ...]], tokenizer: Tokenizer, experiment: Experiment) -> dict[str, Ragged]:
    if experiment.is_text:
        return {"text": Ragged.from_rows(tokenizer.encode_documents([row[0] for row in rows]))}
    limits = {"source": experiment.data.max_source_tokens, "target": experiment.data.max_target_tokens}
    return {
        side: Ragged.from_rows([ids[:limit] for ids in tokenizer.encode([row[place] for row in rows])])
        for place, (side, limit) in enumerate(limits.items())
    }


def _train(
    experiment: Experiment, tokenizer: Tokenizer, train: Mapping[str, Ragged], valid: Mapping[str, Ragged]
) -> Generator:
    model = seeded_model(experiment.model, tokenizer.vocab_size, experiment.seed)
    start_at_frequencies(model, train)
    run = build_run(
        model,
        train_tokens=train,
        valid_tokens=valid,
        train=experiment.train,
        optim=experiment.optim,
        compute=experiment.compute,
        seed=experiment.seed,
    )
    best = _best_weights(run, _Progress(experiment, num_parameters(model)["total"]))
    model.load_state_dict(best, strict=False)
    if experiment.train.calibrate and valid and isinstance(model, LanguageModel):
        model.scale_logits(best_logit_scale(model.eval(), valid["text"]))
    lineage = {
        "made_by": "rnnlm.fit",
        "seed": experiment.seed,
        "train_rows": len(next(iter(train.values()))),
        "steps": run.state.step,
        "valid_perplexity": run.state.best,
    }
    return Generator(
        model,
        experiment.model,
        tokenizer,
        task=experiment.task,
        normalize=experiment.data.normalize,
        decode=experiment.decode,
        lineage=lineage,
    )


def _best_weights(run: TrainingRun, progress: "_Progress") -> dict[str, Tensor]:
    """Train to the end; the weights of the best validation, or the last ones where there is no validation.

    Raises:
        Divergence: before the first validation; after one it is a warning.
    """
    best: dict[str, Tensor] = {}
    divergence = None
    try:
        for report in training_steps(run):
            if report.is_best:
                best = export_weights(run)
            progress.show(report)
    except Divergence as error:
        divergence = error
    progress.close()
    if divergence is None:
        return best or export_weights(run)
    if not best:
        raise divergence
    message = f"{divergence}; the weights are those of step {run.state.best_step}, the best validation before"
    warnings.warn(message, RuntimeWarning, stacklevel=4)
    return best


class _Progress:
    """One line in a terminal, rewritten as the training goes on; nothing anywhere else."""

    _EVERY_S = 0.2

    def __init__(self, experiment: Experiment, num_weights: int) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._seconds = 60 * (experiment.train.max_minutes or math.inf)
        self._head = f"fit: {num_weights:,} weights"
        self._valid = ""
        self._shown = -math.inf

    def show(self, report: StepReport) -> None:
        """Rewrite the line, if it is time."""
        if report.validation:
            self._valid = f", valid perplexity {next(iter(report.validation.values())):.1f}"
        now = time.perf_counter()
        if not self._is_terminal or (now - self._shown < self._EVERY_S and report.stop is None):
            return
        self._shown = now
        done = min(max(report.step / report.planned_steps, report.elapsed_s / self._seconds), 1.0)
        loss = "" if report.loss_nats is None else f", loss {report.loss_nats:.2f}"
        sys.stderr.write(f"\r\033[K{self._head}, {done:.0%}, {report.elapsed_s:.0f} s{loss}{self._valid}")
        sys.stderr.flush()

    def close(self) -> None:
        """End the line."""
        if self._is_terminal:
            sys.stderr.write("\n")
