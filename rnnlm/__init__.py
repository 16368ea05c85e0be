"""Recurrent text generators: train your own, run them every night.

    import rnnlm

    generator = rnnlm.fit(lines, task="text", minutes=2.0, seed=0)
    generator("Once upon", max_length=100)
    generator.save("my-model")
    generator = rnnlm.load("my-model")

Importing this package loads neither torch nor Ray nor MLflow: `fit` and `load` are resolved when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnnlm.api import fit, load

__version__ = "0.1.0"
__all__ = ["__version__", "fit", "load"]


def __getattr__(name: str) -> Any:
    if name in {"fit", "load"}:
        from rnnlm import api

        return getattr(api, name)
    raise AttributeError(f"module 'rnnlm' has no attribute {name!r}")
