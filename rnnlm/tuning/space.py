"""Settings from a search space: seeded samples, and their way into an experiment and into Optuna and back."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from rnnlm.config import digest, merge
from rnnlm.tuning.config import Choice, Dimension, Uniform

Space = Mapping[str, Dimension]
Settings = dict[str, Any]
"""Path of a setting to its value."""

SIGNIFICANT_DIGITS = 4
"""Digits to which sampled numbers are rounded: what `best.toml` says is then exactly what was tried."""
_TRIES_FOR_NEW = 100


def sample(space: Space, seed: int, number: int) -> Settings:
    """The settings of one trial, a pure function of the space, the seed and the trial's number."""
    generator = np.random.default_rng(np.random.SeedSequence([seed, number]))
    return {path: _value(space[path], float(generator.random())) for path in sorted(space)}


def distinct_samples(space: Space, seed: int, count: int, taken: Collection[str] = ()) -> list[Settings]:
    """Up to `count` different samples; fewer where a small space has no more.

    Args:
        space: the search space.
        seed: of the samples.
        count: how many are wanted.
        taken: keys of settings that were tried already.
    """
    found: dict[str, Settings] = {}
    for number in range(count * _TRIES_FOR_NEW):
        if len(found) == count:
            break
        settings = sample(space, seed, number)
        if key(settings) not in taken:
            found.setdefault(key(settings), settings)
    return list(found.values())


def _value(dimension: Dimension, share: float) -> Any:
    """The value at a share in [0, 1) of a dimension."""
    if isinstance(dimension, Choice):
        return dimension.values[int(share * len(dimension.values))]
    if dimension.integer:
        low, high = math.ceil(dimension.low), math.floor(dimension.high)
        if dimension.kind == "uniform":
            return low + int(share * (high - low + 1))
        # Every integer gets the interval that rounds to it.
        return min(max(round(_between(math.log(low - 0.5), math.log(high + 0.5), share, exp=True)), low), high)
    is_log = dimension.kind == "log_uniform"
    ends = (math.log(dimension.low), math.log(dimension.high)) if is_log else (dimension.low, dimension.high)
    return tidy(dimension, _between(*ends, share, exp=is_log))


def _between(low: float, high: float, share: float, *, exp: bool) -> float:
    value = low + share * (high - low)
    return math.exp(value) if exp else value


def tidy(dimension: Uniform, value: float) -> float | int:
    """A number in few digits, still inside the dimension; an integer where the dimension has integers."""
    if dimension.integer:
        return round(value)
    return min(max(float(f"{value:.{SIGNIFICANT_DIGITS}g}"), dimension.low), dimension.high)


def key(settings: Settings) -> str:
    """A short name of settings: the same settings, the same name."""
    return digest(settings)[:12]


def lay_over(tree: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """A plain tree of an experiment with the values at the settings' paths replaced."""
    for path, value in settings.items():
        layer: Any = value
        for name in reversed(path.split(".")):
            layer = {name: layer}
        tree = merge(tree, layer)
    return dict(tree)


def to_indices(space: Space, settings: Settings) -> Settings:
    """Settings with each choice as its index, as Optuna takes them: its categories cannot be lists."""
    return {path: _index(space[path], value) for path, value in settings.items()}


def from_indices(space: Space, raw: Mapping[str, Any]) -> Settings:
    """What Optuna proposes as settings: the reverse of `to_indices`."""
    settings = {}
    for path in sorted(raw):
        dimension = space[path]
        settings[path] = dimension.values[raw[path]] if isinstance(dimension, Choice) else tidy(dimension, raw[path])
    return settings


def _index(dimension: Dimension, value: Any) -> Any:
    return list(dimension.values).index(value) if isinstance(dimension, Choice) else value
