"""Checkpoints: everything that a training needs to go on as if it had never stopped.

A checkpoint is a folder:

    model.safetensors       weights by name
    ema.safetensors         averaged weights, where there are any
    optimizer.safetensors   moments, `PARAMETER/MOMENT`
    carry.safetensors       hidden states of all lanes
    history.safetensors     the row of each step
    state.json              where the training stands, and what computed it
    checkpoint.json         sizes and SHA-256 of the files above; written last

A folder whose `checkpoint.json` is missing or does not fit its files is no checkpoint. Nothing in it is executed when it
is read: there are no pickles.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from rnnlm import faults
from rnnlm.errors import RnnlmError
from rnnlm.storage import sha256_file
from rnnlm.training.guard import Divergence
from rnnlm.training.state import TrainingRun, TrainingState

FORMAT = 1
MANIFEST = "checkpoint.json"


class CorruptCheckpoint(RnnlmError):
    """A folder that is no complete checkpoint, or whose files are not what was written."""


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint will hold, as copies on the CPU, so that it can be written while training goes on."""

    step: int
    files: Mapping[str, Mapping[str, Tensor]]
    """The tensors of each file."""
    described: Mapping[str, Any]
    """For `state.json`."""

    def write(self, folder: Path) -> None:
        """Write the checkpoint.

        Args:
            folder: made if need be; an older checkpoint in it is replaced.

        Raises:
            RnnlmError: the disk refuses.
        """
        try:
            _write(folder, self.files, self.described)
        except (OSError, SafetensorError) as error:
            raise RnnlmError(f"{folder}: the checkpoint cannot be written: {error}") from error


def take_snapshot(run: TrainingRun) -> Snapshot | None:
    """Copy a run between two steps. Collective: every worker calls it; worker 0 gets the copy, the others None.

    Args:
        run: as it is after a step's report.

    Raises:
        Divergence: a weight, an average or a moment is not finite. On all workers alike.
    """
    run.measurements.pull()
    carried = run.task.carried(run.collective)
    snapshot = Snapshot(run.state.step, _tensors(run, carried), _describe(run)) if run.collective.rank == 0 else None
    bad = None if snapshot is None else _not_finite(snapshot)
    if run.collective.any(bad is not None):
        reason = f"{bad or 'a weight'} has values that are not finite, so no checkpoint was saved"
        raise Divergence(run.state.step, reason, run.history.last().learning_rate if len(run.history) else run.optim.lr)
    return snapshot


def save_checkpoint(folder: Path, run: TrainingRun) -> None:
    """Take a snapshot and write it. Collective: every worker calls it, worker 0 writes.

    Raises:
        Divergence: a weight, an average or a moment is not finite.
        RnnlmError: the disk refuses.
    """
    snapshot = take_snapshot(run)
    if snapshot is not None:
        snapshot.write(folder)


def load_checkpoint(folder: Path, run: TrainingRun) -> tuple[str, ...]:
    """Take a run, new from `build_run`, to where a checkpoint stands. Every worker does so.

    Returns:
        What now differs from what computed the checkpoint (threads, processor, release of torch, workers), a line each.
        With any of them the training goes on over the same samples, but not bit by bit as it would have.

    Raises:
        CorruptCheckpoint: see there.
        RnnlmError: the checkpoint is of another model, another optimizer or another seed.
    """
    _verify(folder)
    described = read_state(folder, verify=False)
    expected = {"seed": run.seed, "optimizer": type(run.optimizer).__name__}
    for name, value in expected.items():
        if described[name] != value:
            raise RnnlmError(f"{folder}: the checkpoint has {name} {described[name]}, this training {value}")
    parameters = run.named_parameters()
    _copy(folder, "model", parameters)
    if run.average is not None:
        averages = run.average.tensors()
        _copy(folder, "ema", averages)
        run.average.load(averages, described["ema_updates"])
    _load_optimizer(folder, run, parameters)
    run.task.load_carried(_read(folder, "carry"))
    run.history.load(_read(folder, "history"), described["validations"])
    run.state = TrainingState.from_plain(described["state"])
    now = _environment(run)
    then = described["environment"]
    return tuple(
        f"{name} was {was}, now is {now[name]}" for name, was in then.items() if name in now and was != now[name]
    )


def newest_valid(folders: Iterable[Path]) -> Path | None:
    """Of some folders the checkpoint with the most steps; torn and corrupt ones are passed over."""
    found = []
    for folder in folders:
        with contextlib.suppress(CorruptCheckpoint, LookupError, TypeError, ValueError, OverflowError):
            found.append((int(read_state(folder, verify=False)["state"]["step"]), folder))
    for _, folder in sorted(found, reverse=True):
        with contextlib.suppress(CorruptCheckpoint):
            _verify(folder)
            return folder
    return None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights that were validated: averaged ones where there are any. Verified.

    Raises:
        CorruptCheckpoint: see there.
    """
    _verify(folder)
    return _read(folder, "ema") or _read(folder, "model")


def read_state(folder: Path, *, verify: bool = True) -> dict[str, Any]:
    """What `state.json` says: `state` with `step`, `best` and the plan, `environment`, `seed`, `validations`.

    Raises:
        CorruptCheckpoint: see there.
    """
    if verify:
        _verify(folder)
    try:
        described = json.loads((folder / "state.json").read_text("utf-8"))
        found = described["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpoint(f"{folder}: state.json cannot be read: {error}") from None
    if found != FORMAT:
        raise RnnlmError(f"{folder}: checkpoints of format {found} are not read by this release, which knows {FORMAT}")
    return dict(described)


def read_history(folder: Path) -> dict[str, list[float]]:
    """The series of the training, column by column; its validations are in `read_state`.

    Raises:
        CorruptCheckpoint: see there.
    """
    _verify(folder)
    return {name: tensor.tolist() for name, tensor in _read(folder, "history").items()}


def _tensors(run: TrainingRun, carried: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each file, on the CPU."""
    parameters = run.named_parameters()
    moments = {
        f"{name}/{key}": value
        for name, parameter in parameters.items()
        for key, value in run.optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
    files: dict[str, Mapping[str, Tensor]] = {
        "model": parameters,
        "optimizer": moments,
        "carry": carried,
        "history": run.history.tensors(),
    }
    if run.average is not None:
        files["ema"] = run.average.tensors()
    return {file: {name: _copied(tensor) for name, tensor in tensors.items()} for file, tensors in files.items()}


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _describe(run: TrainingRun) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "seed": run.seed,
        "optimizer": type(run.optimizer).__name__,
        "state": run.state.plain(),
        "steps_per_epoch": run.task.steps_per_epoch(),
        "ema_updates": run.average.num_updates if run.average else 0,
        "validations": list(run.history.validations),
        "environment": _environment(run),
    }


def _environment(run: TrainingRun) -> dict[str, Any]:
    """What decides about the last bits."""
    device = run.arithmetic.device
    on_gpu = device.type == "cuda"
    return {
        "torch": torch.__version__,
        "device": device.type,
        # Its vector instructions: kernels are chosen by them, and add up in another order.
        "processor": torch.cuda.get_device_name(device) if on_gpu else torch.backends.cpu.get_cpu_capability(),
        "precision": run.arithmetic.precision,
        "threads": torch.get_num_threads(),
        "workers": run.collective.world_size,
    }


def _not_finite(snapshot: Snapshot) -> str | None:
    """The name of a weight, an average or a moment with a value that is not finite; None: there is none."""
    checked = [snapshot.files.get(name, {}) for name in ("model", "ema", "optimizer")]
    every = (pair for tensors in checked for pair in tensors.items())
    # A sum is ten times as fast as a look at each value, and not finite where one of them is not.
    suspect = (pair for pair in every if not bool(torch.isfinite(pair[1].sum())))
    return next((name for name, tensor in suspect if not bool(torch.isfinite(tensor).all())), None)


def _write(folder: Path, files: Mapping[str, Mapping[str, Tensor]], described: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # From here on the folder is no checkpoint, until the manifest is back.
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    faults.point("checkpoint.files")
    for name, tensors in files.items():
        safetensors.torch.save_file(dict(tensors), folder / f"{name}.safetensors")
    (folder / "state.json").write_text(json.dumps(described, indent=1), "utf-8")
    written = [*(f"{name}.safetensors" for name in files), "state.json"]
    manifest = {
        "format": FORMAT,
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)} for name in written
        },
    }
    for name in written:
        _flush(folder / name)
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps(manifest, indent=1), "utf-8")
    _flush(temporary)
    faults.point("checkpoint.commit")
    temporary.replace(folder / MANIFEST)
    faults.point("checkpoint.committed")


def _flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _verify(folder: Path) -> None:
    """Compare all files with the manifest.

    Raises:
        CorruptCheckpoint: one of them does not fit.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text("utf-8"))["files"]
        for name, expected in files.items():
            path = folder / name
            if path.stat().st_size != expected["bytes"] or sha256_file(path) != expected["sha256"]:
                raise CorruptCheckpoint(f"{path}: is not what was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpoint(f"{folder}: is not a complete checkpoint: {error}") from None


def _read(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a file; none where there is no such file."""
    path = folder / f"{name}.safetensors"
    if not path.exists():
        return {}
    try:
        return dict(safetensors.torch.load_file(path))
    except (SafetensorError, ValueError, KeyError) as error:
        raise CorruptCheckpoint(f"{path}: is not what was written: {error}") from None


@torch.no_grad()
def _copy(folder: Path, name: str, targets: Mapping[str, Tensor]) -> None:
    """Overwrite tensors with those of a file."""
    tensors = _read(folder, name)
    for key in targets.keys() | tensors.keys():
        there = tuple(tensors[key].shape) if key in tensors else None
        here = tuple(targets[key].shape) if key in targets else None
        if there != here:
            raise RnnlmError(
                f"{folder}: the checkpoint is of another model: {key} has shape {there} in {name}, {here} here"
            )
    for key, target in targets.items():
        target.copy_(tensors[key])


def _load_optimizer(folder: Path, run: TrainingRun, parameters: Mapping[str, nn.Parameter]) -> None:
    for name, tensor in _read(folder, "optimizer").items():
        owner, _, key = name.rpartition("/")
        parameter = parameters[owner]
        # A copy, as these tensors lie in the file's memory.
        run.optimizer.state[parameter][key] = tensor.to(parameter.device, copy=True)
