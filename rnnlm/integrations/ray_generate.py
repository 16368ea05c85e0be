"""A batch job on a Ray cluster: Ray Data maps shards over a pool of actors, each of which holds the model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
import ray.data

from rnnlm.batch.inputs import Shard
from rnnlm.batch.run import Advance, ShardWork, Worker, stage_shard, staged_shard
from rnnlm.errors import RnnlmError
from rnnlm.integrations.ray_cluster import Placement
from rnnlm.storage import Store

SPARE_RESTARTS = 10
"""How often an actor may die besides once for each shard."""


class ShardActor:
    """Loads the model once, then generates one shard a call. Never raises: an error comes back in the row."""

    def __init__(self, package: str, threads: int, work: ShardWork) -> None:
        import torch

        from rnnlm.package import load_package

        torch.set_num_threads(threads)
        self.worker = Worker(load_package(Path(package)), Path(package))
        self.work = work

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Generate the shards named in the batch, one by design."""
        rows, errors = [], []
        for name in batch["name"]:
            try:
                entry = self.work.write(self.worker, staged_shard(Store(self.work.folder), str(name)))
                rows.append(entry["rows"])
                errors.append("")
            except Exception as error:
                rows.append(0)
                errors.append(f"{name}: {type(error).__name__}: {error}")
        return {"rows": rows, "error": errors}


def on_actors(package: Path, placement: Placement, advance: Advance) -> Callable[[ShardWork, Iterator[Shard]], None]:
    """Work shards off on a pool of actors.

    Args:
        package: the model package; on several hosts it has to be a folder that all of them see.
        placement: actors, and the cores and GPUs of each.
        advance: told how many more rows are done.
    """

    def work_off(work: ShardWork, shards: Iterator[Shard]) -> None:
        folder = Store(work.folder)
        names = [{"name": stage_shard(folder, shard)} for shard in shards]
        if not names:
            return
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        actors = min(placement.num_workers, len(names))
        done = (
            ray.data.from_items(names)
            .repartition(len(names))
            .map_batches(
                ShardActor,
                fn_constructor_args=(str(package), placement.cpus_per_worker, work),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=actors),
                # Reading the list of names needs room too: actors that take every core would wait for ever.
                num_cpus=max(0.1, placement.cpus_per_worker - 0.5),
                num_gpus=placement.gpus_per_worker or None,
                # An actor that dies is started again, by default without end. A shard that kills its actor does so once,
                # as it is decoded apart from then on; what goes beyond that is no matter of rows.
                max_restarts=SPARE_RESTARTS + len(names),
            )
        )
        errors = []
        try:
            for row in done.iter_rows():
                advance(int(row["rows"]))
                errors += [row["error"]] if row["error"] else []
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise RnnlmError(
                f"the actors that decode end before they are done: {reason}. Run the command again"
            ) from error
        if errors:
            raise RnnlmError(
                f"{len(errors)} shards could not be written; the first: {errors[0]}. Run the command again"
            )

    return work_off
