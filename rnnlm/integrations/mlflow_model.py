"""A model package as an MLflow model: its files as an artifact, its code as shipped source, nothing pickled."""

import contextlib
import importlib
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import mlflow
from mlflow.models import Model
from mlflow.models.signature import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

import rnnlm
from rnnlm.package import inference_closure, package_digest, read_info

ENTRY = Path(__file__).with_name("pyfunc_entry.py")
ARTIFACT = "package"
_PARAM_TYPES = {
    "method": "string",
    "precision": "string",
    "beam_size": "long",
    "length_penalty": "double",
    "temperature": "double",
    "top_k": "long",
    "top_p": "double",
    "max_length": "long",
    "min_length": "long",
    "seed": "long",
}
_EXAMPLES = {"text": "Once upon a time", "translate": "Ein Hund schläft.", "summarize": "Ann: Tea? Ben: Yes, at four."}


def signature() -> ModelSignature:
    """One column of texts in; text and score out. A parameter that is not given keeps the package's own setting."""
    params = [ParamSpec(name, kind, None) for name, kind in _PARAM_TYPES.items()]
    outputs = Schema([ColSpec("string", "output"), ColSpec("double", "score")])
    return ModelSignature(Schema([ColSpec("string")]), outputs, ParamSchema(params))


def pip_requirements(package: Path) -> list[str]:
    """What the model needs: the package's exact versions, and this MLflow with its own needs."""
    return [*read_info(package).requirements, f"mlflow=={mlflow.__version__}"]


def log_model(package: Path, *, run_id: str, tracking_uri: str, name: str = "model") -> str:
    """Log a package as a model of a run.

    Args:
        package: folder of the model package.
        run_id: the run that the model belongs to.
        tracking_uri: of the tracking server.
        name: shown in MLflow's list of models.

    Returns:
        The model's URI, `models:/m-...`.
    """
    info = read_info(package)
    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    tags = {"rnnlm.digest": package_digest(package), "rnnlm.version": info.library_version}
    model = client.create_logged_model(
        client.get_run(run_id).info.experiment_id, name=name, source_run_id=run_id, model_type=info.task, tags=tags
    )
    with (
        global_address(tracking_uri),
        _import_path_kept(),
        tempfile.TemporaryDirectory(prefix="rnnlm-model-") as scratch,
    ):
        Model.log(
            None,
            flavor=importlib.import_module(
                "mlflow.pyfunc"
            ),  # warns as it is imported, which is none of our users' business
            model_id=model.model_id,
            run_id=run_id,
            python_model=str(ENTRY),
            artifacts={ARTIFACT: str(_copied(package, Path(scratch)))},
            code_paths=[str(_shipped_code(Path(scratch)))],
            signature=signature(),
            input_example=([_EXAMPLES[info.task]], {"max_length": 20}),
            pip_requirements=pip_requirements(package),
            metadata=info.lineage | tags,
        )
    return f"models:/{model.model_id}"


def _copied(package: Path, scratch: Path) -> Path:
    """The package under the name that it has inside the model."""
    return Path(shutil.copytree(package, scratch / ARTIFACT))


def _shipped_code(scratch: Path) -> Path:
    """A copy of the part of rnnlm that generating needs."""
    root = Path(rnnlm.__file__).parent
    for source in inference_closure():
        target = scratch / "code" / root.name / source.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return scratch / "code" / root.name


@contextlib.contextmanager
def global_address(tracking_uri: str) -> Iterator[None]:
    """Use an address for the parts of MLflow that know only a global one, even where a client with its own calls them."""
    before = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    try:
        yield
    finally:
        # What was set by a call stands in the environment too, from where children inherit it.
        mlflow.set_tracking_uri(before["MLFLOW_TRACKING_URI"])
        mlflow.set_registry_uri(before["MLFLOW_REGISTRY_URI"])
        if before["MLFLOW_REGISTRY_URI"] is None:
            os.environ.pop("MLFLOW_REGISTRY_URI", None)  # which MLflow leaves there


@contextlib.contextmanager
def _import_path_kept() -> Iterator[None]:
    """Leave the import path as it was: MLflow loads the model once, from a temporary folder that it adds to the path."""
    path = list(sys.path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.path[:] = path
