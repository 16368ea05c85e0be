"""The code of a registered model ("models from code"): MLflow copies this file into the model and runs it on loading.

What it imports of rnnlm is shipped beside it (`rnnlm.package.inference_closure`), so that it works where rnnlm is not
installed. `predict` has no type hints on purpose: with any, MLflow drops the schema of the parameters.
"""

import math
import os
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from rnnlm.decoding.config import DecodeConfig
from rnnlm.errors import UsageError
from rnnlm.package import load_package

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

PARAMS = (
    "method",
    "precision",
    "beam_size",
    "length_penalty",
    "temperature",
    "top_k",
    "top_p",
    "max_length",
    "min_length",
    "seed",
)


class PackagedGenerator(PythonModel):
    """Generates text with the model package among its artifacts."""

    # Without it MLflow advises type hints, of which see above, whenever the model is loaded.
    _skip_type_hint_validation = True

    def load_context(self, context: Any) -> None:
        """Load the package."""
        self.generator = load_package(context.artifacts["package"])

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ARG002
        """Generate a text for each input.

        Args:
            context: not used.
            model_input: a list of strings, or a table with one column of strings.
            params: decoding settings; None leaves a setting as the package has it.

        Returns:
            A table with `output`, and `score`, the mean log-probability of its tokens in nats (NaN: the input is blank).

        Raises:
            UsageError: an input that is no text, an unknown setting, or a value out of range.
        """
        outputs = self.generator.generate(texts_of(model_input), settings_of(self.generator, params or {}))
        scores = [math.nan if output.score is None else output.score for output in outputs]
        return pd.DataFrame({"output": [output.text for output in outputs], "score": scores})


def texts_of(model_input: Any) -> list[str]:
    """The texts in what MLflow hands over.

    Raises:
        UsageError: with the place of the first input that is no text.
    """
    if isinstance(model_input, str):
        model_input = [model_input]
    if isinstance(model_input, pd.DataFrame):
        if model_input.shape[1] != 1:
            columns = ", ".join(map(str, model_input.columns))
            raise UsageError(f"input: should have one column of texts (got {model_input.shape[1]}: {columns})")
        model_input = model_input.iloc[:, 0]
    texts = list(model_input)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            missing = text is None or text is pd.NA or (isinstance(text, float) and math.isnan(text))
            found = "it is missing" if missing else f"got {type(text).__name__}"
            raise UsageError(f"input {place}: should be a text ({found})")
    return texts


def settings_of(generator: Any, params: dict[str, Any]) -> DecodeConfig:
    """Decoding settings of a call.

    Raises:
        UsageError: an unknown setting, or a value out of range.
    """
    unknown = sorted(set(params) - set(PARAMS))
    if unknown:
        raise UsageError(f"params: unknown setting {unknown[0]!r}; allowed: {', '.join(PARAMS)}")
    settings: DecodeConfig = generator.settings(**params)
    return settings


set_model(PackagedGenerator())
