"""What a search that was killed has to know again: how far its trials were at each rung, and which settings were tried."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from rnnlm.tuning.ledger import Trial

MAX_TRIES = 100
"""Settings in a row that were tried already, after which a searcher is taken to have no others."""


@dataclass(frozen=True)
class _Known:
    """A trial as the scheduler sees it: by its settings, as a restart gives it another id."""

    trial_id: str


class RememberingASHA(ASHAScheduler):
    """ASHA that begins with what a ledger says of earlier processes.

    A trial that goes on was measured at the rungs below it already, and is not measured there again.

    Args:
        past: trials of the ledger.
        key_of: the ledger's key of one of Tune's trials.
        options: as for `ASHAScheduler`.
    """

    def __init__(self, past: Sequence[Trial], key_of: Callable[[Any], str], **options: Any) -> None:
        super().__init__(**options)
        self._past = past
        self._key_of = key_of

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Tune's hook; the first one that is called."""
        accepted = bool(super().set_search_properties(metric, mode, **spec))
        for trial in self._past:
            super().on_trial_add(None, _Known(trial.key))
            for progress, value in trial.reports:
                super().on_trial_result(None, _Known(trial.key), {self._time_attr: progress, self._metric: value})
        self._past = ()
        return accepted

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Tune's hook."""
        super().on_trial_add(tune_controller, self._known(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Tune's hook."""
        return str(super().on_trial_result(tune_controller, self._known(trial), result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Tune's hook."""
        super().on_trial_complete(tune_controller, self._known(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Tune's hook."""
        super().on_trial_remove(tune_controller, self._known(trial))

    def _known(self, trial: Any) -> _Known:
        return _Known(self._key_of(trial))


class NewSettings(Searcher):
    """A searcher that proposes no settings twice: what is known of those that were tried is told at once.

    Args:
        inner: proposes.
        key_of: the ledger's key of what it proposes.
        results: key to metric of the trials that have ended; None for one that has no figure.
    """

    def __init__(
        self, inner: Searcher, key_of: Callable[[Mapping[str, Any]], str], results: Mapping[str, float | None]
    ) -> None:
        super().__init__(metric=inner.metric, mode=inner.mode)
        self._inner = inner
        self._key_of = key_of
        self._results = dict(results)
        self._ids: dict[str, str] = {}

    def suggest(self, trial_id: str) -> Any:
        """Tune's hook."""
        for number in range(MAX_TRIES):
            inner_id = f"{trial_id}-{number}"
            proposed = self._inner.suggest(inner_id)
            if not isinstance(proposed, Mapping):
                return proposed
            key = self._key_of(proposed)
            if key not in self._results:
                self._results[key] = None
                self._ids[trial_id] = inner_id
                return proposed
            value = self._results[key]
            result = None if value is None else {self.metric: value}
            self._inner.on_trial_complete(inner_id, result, error=result is None)
        return Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tune's hook."""
        self._inner.on_trial_result(self._ids[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune's hook."""
        self._inner.on_trial_complete(self._ids[trial_id], result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the ledger remembers."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the ledger remembers."""
