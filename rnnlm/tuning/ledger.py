"""The search's own memory: a line of JSON for each trial, in the store.

One process writes it. A search that is started again reads what is finished, and goes on with what is open.
"""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from rnnlm import faults
from rnnlm.errors import RnnlmError
from rnnlm.storage import Store

LEDGER_FILE = "ledger.jsonl"
Status = Literal["open", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Trial:
    """One setting that was tried.

    Attributes:
        key: name of its settings, and of its folder below `trials/`.
        number: from 0, in the order of starting.
        settings: path of a setting to its value.
        status: `open` until it has ended; `stopped` early as a loser; `failed` with an `error`.
        metrics: of its best validation so far.
        steps: optimizer steps done.
        run_id: its MLflow run.
        seconds: wall time of training.
        error: what went wrong.
        reports: how far it was (in parts of its planned steps) and its metric then, at each validation that it was
            allowed to go on after; a scheduler compares others with them.
    """

    key: str
    number: int
    settings: dict[str, Any]
    status: Status = "open"
    metrics: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    run_id: str | None = None
    seconds: float = 0.0
    error: str | None = None
    reports: list[tuple[int, float]] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.status == "open"


class Ledger:
    """All trials of one search.

    Args:
        store: the search's folder.

    Raises:
        RnnlmError: the file is there but is not a ledger; the message names the line.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._trials: dict[str, Trial] = {}
        if store.exists(LEDGER_FILE):
            for number, line in enumerate(store.read_bytes(LEDGER_FILE).splitlines(), start=1):
                self._read(number, line)

    def _read(self, number: int, line: bytes) -> None:
        try:
            trial = Trial(**json.loads(line))
            trial = replace(trial, reports=[(int(progress), float(value)) for progress, value in trial.reports])
        except (ValueError, TypeError) as error:
            raise RnnlmError(f"{self._store.path(LEDGER_FILE)}, line {number}: not a trial ({error})") from None
        self._trials[trial.key] = trial

    def __len__(self) -> int:
        return len(self._trials)

    def get(self, key: str) -> Trial | None:
        """The trial of these settings."""
        return self._trials.get(key)

    @property
    def trials(self) -> list[Trial]:
        """All trials, in the order of starting."""
        return sorted(self._trials.values(), key=lambda trial: trial.number)

    def put(self, trial: Trial) -> None:
        """Write down the state of a trial, in place of the one before."""
        self._trials[trial.key] = trial
        lines = [json.dumps(asdict(each), sort_keys=True, ensure_ascii=False) for each in self.trials]
        faults.point("ledger.write")
        self._store.write_bytes(LEDGER_FILE, ("\n".join(lines) + "\n").encode())
        faults.point("ledger.written")

    def best(self, metric: str) -> Trial | None:
        """The lowest metric among the finished trials, or among all where none has finished.

        A trial that was stopped early has a figure of another training length.
        """
        scored = [trial for trial in self.trials if math.isfinite(trial.metrics.get(metric, math.inf))]
        finished = [trial for trial in scored if trial.status == "finished"]
        return min(finished or scored, key=lambda trial: trial.metrics[metric], default=None)
