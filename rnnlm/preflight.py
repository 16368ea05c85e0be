"""`--check`: is everything there, and what will it cost? Nothing is written and no Ray is started."""

import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from rnnlm.batch.lease import check_lockable
from rnnlm.console import Console
from rnnlm.errors import UnreachableError, UsageError
from rnnlm.experiment import Experiment
from rnnlm.interrupts import Interrupts
from rnnlm.stages import ingest
from rnnlm.stages import initial as initials
from rnnlm.stages.context import Context, Options
from rnnlm.storage import Store

if TYPE_CHECKING:
    from rnnlm.integrations.mlflow_tracking import Tracking
    from rnnlm.models.language_model import LanguageModel
    from rnnlm.models.seq2seq import Seq2Seq

BYTES_PER_TOKEN = {"bpe": 3.5, "word": 5.5, "char": 1.0}
"""Rough values for European languages, used until the corpus has been tokenized."""
RAY_BYTES = 1_500_000_000
"""What Ray's own processes and one worker's libraries take on one host."""
MEASURED_STEPS = 3
MEASURING_S = 20.0


@dataclass(frozen=True)
class Estimate:
    """What a training will take; None is not known."""

    num_tokens: int | None
    positions_per_step: int
    steps: int | None
    memory_bytes: int
    disk_bytes: int | None
    seconds: float | None


def check(experiment: Experiment, options: Options) -> list[str]:
    """Look at input, store, tracking server, Ray and the model to begin with, and estimate the training.

    Returns:
        Lines for people.

    Raises:
        RnnlmError: the first thing that cannot work.
    """
    context = Context(experiment, options, Console(), Interrupts())
    sources = ingest.find_sources(context)
    context.check_libraries()
    check_lockable(context.store, context.locking())
    check_places(options)
    from rnnlm.models.build import build_model, num_parameters

    initial = find_initial(context)
    vocab_size = experiment.tokenizer.vocab_size if initial is None else initial.tokenizer().vocab_size
    model = build_model(experiment.model, vocab_size)
    counts = num_parameters(model)
    found = estimate(experiment, sources.num_bytes, counts["total"], step_seconds(experiment, model, vocab_size))
    size = f"{sources.num_bytes / 1e6:,.1f} MB" if sources.num_bytes else "size not known,"
    tokens = "not known" if found.num_tokens is None else f"about {found.num_tokens:,} an epoch"
    steps = "not known" if found.steps is None else f"about {found.steps:,}"
    disk = "not known," if found.disk_bytes is None else f"about {found.disk_bytes / 1e6:,.0f} MB"
    return [
        f"{experiment.name}: fine",
        f"  input       {size} in {len(sources.digests)} files or sets",
        f"  parameters  {counts['total']:,}, {counts['without_embeddings']:,} without embeddings",
        f"  tokens      {tokens}, vocabulary of {vocab_size:,}",
        f"  steps       {steps}, of at most {found.positions_per_step:,} positions each",
        f"  memory      about {found.memory_bytes / 1e9:,.1f} GB with one worker, Ray included",
        f"  disk        {disk} in {options.store}",
        f"  training    {_time(found)}",
        f"  tracking    {options.tracking_uri}",
        *([] if initial is None else [f"  begins with {initial.named}, {initial.digest[:12]}"]),
    ]


def _time(found: Estimate) -> str:
    if found.seconds is None:
        return "not known" if found.steps is None else "not measured"
    return f"{'at most' if found.steps is None else 'about'} {duration(found.seconds)} with all cores of this machine"


def find_initial(context: Context) -> "initials.Initial | None":
    """The model of `init.from`, checked against the experiment; a registered one is fetched into this node's cache.

    Raises:
        UsageError: there is no such model, or it is another one than the experiment describes.
    """
    named = context.experiment.init.from_
    tracking = _registry(context.options.tracking_uri, named) if named and named.startswith("models:") else None
    initial = initials.find(context, tracking)
    if initial is not None:
        initials.check_sizes(initial, context, initial.tokenizer().vocab_size)
    return initial


def _registry(uri: str, named: str) -> "Tracking":
    """The tracking server, asked without sending it anything that waits, and without making a database."""
    scheme, _, path = uri.partition(":///")
    if scheme == "sqlite" and not Path(unquote(path)).exists():
        raise UsageError(f"init.from: {named}: no model is registered at {uri}, which is not there yet")
    from rnnlm.integrations.mlflow_tracking import Tracking

    return Tracking(uri)


def check_places(options: Options) -> None:
    """Whether store, tracking server and Ray answer, without writing anything.

    Raises:
        UnreachableError: one of them does not.
    """
    Store(options.store).check_there()
    if not options.tracking_uri.startswith("sqlite:"):
        from rnnlm.integrations.mlflow_tracking import check_reachable

        check_reachable(options.tracking_uri)
    host, separator, port = (options.address or "").removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        try:
            socket.create_connection((host, int(port)), 5.0).close()
        except OSError as error:
            raise UnreachableError(f"no Ray at {options.address}: {error.strerror or error}") from None


def estimate(experiment: Experiment, num_bytes: int, num_parameters: int, step_s: float | None) -> Estimate:
    """The sizes that follow from the corpus, the model and the recipe.

    Args:
        experiment: the recipe.
        num_bytes: of text, decompressed, all splits; 0 where that is not known.
        num_parameters: of the model.
        step_s: seconds of one step on this machine, if known.
    """
    train = experiment.train
    num_tokens = max(1, round(num_bytes / BYTES_PER_TOKEN[experiment.tokenizer.kind])) if num_bytes else None
    positions = train.lanes * train.bptt_length if experiment.is_text else train.batch_tokens
    steps = train.max_steps
    if steps is None and num_tokens is not None:
        steps = max(1, round(train.epochs * num_tokens / positions))
    seconds = None if step_s is None or steps is None else step_s * steps
    if train.max_minutes is not None:
        seconds = min(seconds or float("inf"), 60 * train.max_minutes)
    averages = experiment.optim.ema_decay is not None or experiment.optim.asgd_patience is not None
    copies = 4 + averages  # weights, gradients, two moments, average
    # A gated layer keeps about 14 values a unit for its gradient, and reads and gives one.
    activations = 4 * positions * 16 * (experiment.model.depth + 1) * experiment.model.widest
    checkpoint = 4 * num_parameters * (copies - 1)
    return Estimate(
        num_tokens,
        positions,
        steps,
        RAY_BYTES + 4 * copies * num_parameters + activations,
        None if num_tokens is None else num_bytes + 4 * num_tokens + (train.keep_checkpoints + 2) * checkpoint,
        seconds,
    )


def step_seconds(experiment: Experiment, model: "LanguageModel | Seq2Seq", vocab_size: int) -> float | None:
    """Seconds of a forward and backward pass at the size of a step, measured on random tokens; None if that takes long."""
    import torch

    from rnnlm.models.language_model import LanguageModel

    generator = torch.Generator().manual_seed(0)

    def tokens(rows: int, length: int) -> torch.Tensor:
        return torch.randint(3, vocab_size, (rows, length), generator=generator)

    def step() -> None:
        train = experiment.train
        if isinstance(model, LanguageModel):
            ids = tokens(train.lanes, train.bptt_length + 1)
            loss = model.loss(ids[:, :-1], ids[:, 1:], model.init_state(train.lanes))[0]
        else:
            length = min(20, experiment.data.max_source_tokens)
            rows = max(1, train.batch_tokens // (2 * length))
            source, target = tokens(rows, length), tokens(rows, length)
            loss = model.loss(source, torch.full((rows,), length), target, target)[0]
        loss.backward()  # type: ignore[no-untyped-call]

    began = time.perf_counter()
    step()  # the first one allocates
    times: list[float] = []
    while len(times) < MEASURED_STEPS:
        if time.perf_counter() - began > MEASURING_S:
            return min(times) if times else None
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3_600:.1f} h"
