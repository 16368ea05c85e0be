"""MLflow as the place where people look: runs with parameters, inputs, curves and artifacts.

`Tracking` is a thin layer over `MlflowClient` with one address, absolute artifact locations and our errors.
"""

import contextlib
import json
import math
import os
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnlm import faults
from rnnlm.batch.lease import LeaseHeldError, LeaseLostError
from rnnlm.errors import RnnlmError, UnreachableError, UsageError, without_secrets

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from rnnlm.integrations.batch_tracker import Point, now_ms

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAGE_TAG = "rnnlm.stage"
PARENT_TAG = "mlflow.parentRunId"
TABLES_TAG = "mlflow.loggedArtifacts"
"""Lists the tables that the pages show."""
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Makes the UI show runs and their curves; it would guess that text is for an LLM's traces."""
MAX_BATCH_METRICS = 1000
MAX_BATCH_PARAMS = 100
MAX_PARAM_CHARACTERS = 6000
MAX_DATASET_DIGEST = 36
ANSWER_TIMEOUT_S = 5.0
_SECRET_NAME = re.compile(
    r"(^|[._-])(password|passwd|secret|credentials?|api[_-]?key|access[_-]?key|auth[_-]?token)$", re.I
)
_DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


def check_reachable(uri: str) -> None:
    """Ask once whether the tracking server answers, instead of minutes of retries later.

    Raises:
        UnreachableError: it does not.
    """
    parts = urllib.parse.urlsplit(uri)
    scheme = parts.scheme.split("+")[0]
    if scheme == "sqlite":
        _check_folder(uri, Path(urllib.parse.unquote(parts.path)[1:]).parent)
    elif scheme in _DEFAULT_PORTS:
        try:
            address = (parts.hostname or "localhost", parts.port or _DEFAULT_PORTS[scheme])
            socket.create_connection(address, ANSWER_TIMEOUT_S).close()
            if scheme.startswith("http"):
                health = f"{without_secrets(uri).rstrip('/')}/health"
                urllib.request.urlopen(health, timeout=ANSWER_TIMEOUT_S).close()  # noqa: S310  (http or https)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code >= 500:
                raise UnreachableError(f"tracking server {without_secrets(uri)}: answers {error.code}") from None
        except OSError as error:
            reason = getattr(error, "reason", None) or error.strerror or error
            raise UnreachableError(f"tracking server {without_secrets(uri)}: does not answer ({reason})") from None


def _check_folder(uri: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnreachableError(f"tracking database {uri}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UnreachableError(f"tracking database {uri}: the folder cannot be written")


class Tracking:
    """One MLflow.

    Args:
        uri: `sqlite:////absolute/path.db`, `http://...` or another URI that MLflow knows.
        artifact_root: folder or URI for the artifacts of new experiments; None leaves that to the server.
        check: whether to ask first if it answers.

    Raises:
        UnreachableError: it does not answer.
    """

    def __init__(self, uri: str, artifact_root: str | None = None, *, check: bool = True) -> None:
        if check:
            check_reachable(uri)
        self.uri = uri
        self.artifact_root = artifact_root
        with self._reaching():
            self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def experiment_id(self, name: str) -> str:
        """The id of an experiment, which is made, or taken out of the bin, where need be."""
        with self._reaching():
            found = self.client.get_experiment_by_name(name)
            if found is None:
                try:
                    return self._create_experiment(name)
                except MlflowException:
                    # Somebody else made it in between.
                    found = self.client.get_experiment_by_name(name)
                    if found is None:
                        raise
            if found.lifecycle_stage == "deleted":
                self.client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)

    def _create_experiment(self, name: str) -> str:
        location = self._artifact_location(name)
        return str(self.client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS))

    def start_run(
        self,
        experiment: str,
        name: str,
        stage: str,
        parent_run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        inputs: Mapping[str, str] | None = None,
        identity: Mapping[str, str] | None = None,
    ) -> str:
        """Make a run, or take the one with this identity.

        Args:
            experiment: name of the MLflow experiment.
            name: shown in MLflow's list.
            stage: value of the tag `rnnlm.stage`.
            parent_run_id: the run that this one is shown below.
            tags: more tags; logged without the credentials in them.
            params: a tree of settings; logged flat, without secrets.
            inputs: name to digest of what the run reads.
            identity: tags that no other run of the experiment has. If there is a run with them, a process made it that
                ended before it could say so, or before it had logged everything: the rest is logged.

        Returns:
            The run's id.
        """
        run_id = self.find_run(experiment, identity) if identity else None
        if run_id is not None:
            self.reopen_run(run_id)
            self._complete(run_id, params or {}, inputs or {})
            return run_id
        all_tags = {STAGE_TAG: stage, **_shown(tags or {}), **(identity or {})}
        if parent_run_id is not None:
            all_tags[PARENT_TAG] = parent_run_id
        experiment_id = self.experiment_id(experiment)
        faults.point("run.create")
        with self._reaching():
            run_id = str(self.client.create_run(experiment_id, tags=all_tags, run_name=name).info.run_id)
        faults.point("run.created")
        self.log_params(run_id, params or {})
        self.log_inputs(run_id, inputs or {})
        return run_id

    def _complete(self, run_id: str, params: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        """Log what a run does not show yet of its settings and inputs."""
        with self._reaching():
            run = self.client.get_run(run_id)
        shown = {each.dataset.name for each in run.inputs.dataset_inputs}
        self.log_params(run_id, {path: text for path, text in flatten(params).items() if path not in run.data.params})
        self.log_inputs(run_id, {name: value for name, value in inputs.items() if name not in shown})

    def reopen_run(self, run_id: str) -> None:
        """Show a run as running again, when its work goes on."""
        with self._reaching():
            self.client.update_run(run_id, status="RUNNING")

    def end_run(self, run_id: str, status: str = "FINISHED") -> None:
        """Close a run as `FINISHED`, `FAILED` or `KILLED`."""
        with self._reaching():
            self.client.set_terminated(run_id, status)

    @contextlib.contextmanager
    def closing(self, run_id: str) -> Iterator[None]:
        """Close the run when the block ends: `FAILED` after an error, `KILLED` after an interrupt.

        Where another process does the same work, the run is that one's too, and is left to it.
        """
        try:
            yield
        except (LeaseHeldError, LeaseLostError):
            raise
        except BaseException as error:
            with contextlib.suppress(UnreachableError):
                self.end_run(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        self.end_run(run_id)

    def has_run(self, run_id: str) -> bool:
        """Whether the run exists and has not been deleted."""
        try:
            with self._reaching():
                return bool(self.client.get_run(run_id).info.lifecycle_stage == "active")
        except UsageError:
            return False

    def run_status(self, run_id: str) -> str:
        """`RUNNING`, `FINISHED`, `FAILED` or `KILLED`."""
        with self._reaching():
            return str(self.client.get_run(run_id).info.status)

    def run_metrics(self, run_id: str) -> dict[str, float]:
        """The last value of each metric."""
        with self._reaching():
            return {key: float(value) for key, value in self.client.get_run(run_id).data.metrics.items()}

    def find_run(self, experiment: str, tags: Mapping[str, str]) -> str | None:
        """The newest run of an experiment with all these tags."""
        conditions = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        with self._reaching():
            found = self.client.search_runs([self.experiment_id(experiment)], conditions, max_results=1)
        return str(found[0].info.run_id) if found else None

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Log a tree of settings flat, `optim.lr` for instance, cut to what MLflow takes, without secrets."""
        flat = [Param(key, value) for key, value in flatten(params).items()]
        for start in range(0, len(flat), MAX_BATCH_PARAMS):
            with self._reaching():
                self.client.log_batch(run_id, params=flat[start : start + MAX_BATCH_PARAMS])

    def log_inputs(self, run_id: str, inputs: Mapping[str, str]) -> None:
        """Log what a run reads: name to digest."""
        datasets = [
            DatasetInput(
                Dataset(name, digest[:MAX_DATASET_DIGEST], "rnnlm", digest), [InputTag("mlflow.data.context", name)]
            )
            for name, digest in inputs.items()
        ]
        if datasets:
            with self._reaching():
                self.client.log_inputs(run_id, datasets)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run, without the credentials in them."""
        with self._reaching():
            self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in _shown(tags).items()])

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log one value for each of several metrics."""
        now = now_ms()
        self.log_points(run_id, [Point(key, value, step, now) for key, value in metrics.items()])

    def log_once(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log one value for each of several metrics, but for those that have one at this step."""
        now = now_ms()
        self.log_new_points(run_id, [Point(key, value, step, now) for key, value in metrics.items()])

    def log_new_points(self, run_id: str, points: Sequence[Point]) -> None:
        """Log those values of curves whose steps are not there yet."""
        known = {key: self.logged_steps(run_id, key) for key in {point.key for point in points}}
        Tracking.log_points(self, run_id, [point for point in points if point.step not in known[point.key]])

    def log_points(self, run_id: str, points: Sequence[Point]) -> None:
        """Log values of curves, a batch at a time."""
        for start in range(0, len(points), MAX_BATCH_METRICS):
            batch = [
                Metric(p.key, float(p.value), p.time_ms, p.step) for p in points[start : start + MAX_BATCH_METRICS]
            ]
            faults.point("metrics.send")
            with self._reaching():
                self.client.log_batch(run_id, metrics=batch)
            faults.point("metrics.sent")

    def logged_steps(self, run_id: str, key: str) -> set[int]:
        """The steps at which a metric has a value."""
        with self._reaching():
            return {metric.step for metric in self.client.get_metric_history(run_id, key)}

    def log_artifact(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Upload a file."""
        with self._reaching():
            self.client.log_artifact(run_id, str(path), folder)

    def log_artifacts(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Upload what a folder holds."""
        with self._reaching():
            self.client.log_artifacts(run_id, str(path), folder)

    def log_text(self, run_id: str, text: str, name: str) -> None:
        """Upload a text as a file."""
        with self._reaching():
            self.client.log_text(run_id, text, name)

    def log_json(self, run_id: str, value: Mapping[str, Any], name: str) -> None:
        """Upload a value as a JSON file."""
        self.log_text(run_id, json.dumps(value, indent=1, ensure_ascii=False), name)

    def log_table(self, run_id: str, columns: Mapping[str, Sequence[Any]], name: str) -> None:
        """Upload a table that MLflow's pages show, in place of the one before; `name` ends in `.json`."""
        # MLflow's own method adds the rows to those of a table that is there.
        rows = [[_plain(value) for value in row] for row in zip(*columns.values(), strict=True)]
        with self._reaching():
            self.client.log_text(run_id, json.dumps({"columns": list(columns), "data": rows}, ensure_ascii=False), name)
            shown = json.loads(self.client.get_run(run_id).data.tags.get(TABLES_TAG, "[]"))
            if (table := {"path": name, "type": "table"}) not in shown:
                self.client.set_tag(run_id, TABLES_TAG, json.dumps([*shown, table]))

    def log_figure(self, run_id: str, figure: "Figure", name: str) -> None:
        """Upload a figure as `.png` or `.svg`."""
        with self._reaching():
            self.client.log_figure(run_id, figure, name)

    def _artifact_location(self, experiment: str) -> str | None:
        if self.artifact_root is None:
            return None
        folder = urllib.parse.quote(experiment, safe="")
        if "://" in self.artifact_root:
            return f"{self.artifact_root.rstrip('/')}/{folder}"
        return (Path(self.artifact_root).absolute() / folder).as_uri()

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turn MLflow's errors into ours."""
        try:
            yield
        except MlflowException as error:
            message = f"MLflow at {without_secrets(self.uri)}: {str(error).strip().splitlines()[0]}"
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise UsageError(message) from error
            if error.error_code in {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "RESOURCE_EXHAUSTED"}:
                raise UnreachableError(message) from error
            raise RnnlmError(message) from error
        except OSError as error:
            raise UnreachableError(f"MLflow at {without_secrets(self.uri)}: {error}") from error


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A tree of settings as `path` to text. What is unset is left out; what looks like a secret is hidden."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{path}.")
        elif _SECRET_NAME.search(path):
            flat[path] = "(hidden)"
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            flat[path] = without_secrets(text)[:MAX_PARAM_CHARACTERS]
    return flat


def _shown(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: without_secrets(value) for key, value in tags.items()}


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
