from typing import Any

import pytest

from rnnlm.errors import ConfigError
from rnnlm.tuning.config import TuneConfig


@pytest.mark.parametrize(
    ("dimension", "message"),
    [
        ({"kind": "uniform", "low": 2, "high": 1}, r"low: should be less than high \(got 2\.0 and 1\.0\)"),
        ({"kind": "log_uniform", "low": 0, "high": 1}, r"low: should be greater than 0 for log_uniform \(got 0\.0\)"),
        ({"kind": "choice", "values": []}, "values"),
        ({"kind": "normal"}, "kind"),
    ],
)
def test_a_dimension_that_makes_no_sense(dimension: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TuneConfig.parse({"space": {"optim.lr": dimension}})


def test_a_uniform_dimension_may_hold_zero() -> None:
    config = TuneConfig.parse({"space": {"model.output_dropout": {"kind": "uniform", "low": 0, "high": 0.5}}})
    assert config.plain()["space"]["model.output_dropout"]["low"] == 0.0


def test_each_mistake_in_a_space_is_a_line_with_its_path() -> None:
    space = {
        "optim.lr": {"kind": "log_uniform", "low": 0, "high": 1},
        "optim.weight_decay": {"kind": "uniform", "low": 2, "high": 1},
        "model.output_dropout": {"kind": "uniform", "low": "x", "high": 1},
        "train.lanes": {"kind": "choice", "values": [1], "vales": [2]},
    }
    with pytest.raises(ConfigError) as caught:
        TuneConfig.parse({"space": space})
    first, second, number, unknown = caught.value.problems
    assert first == 'space."optim.lr".low: should be greater than 0 for log_uniform (got 0.0)'
    assert second == 'space."optim.weight_decay".low: should be less than high (got 2.0 and 1.0)'
    assert number.startswith('space."model.output_dropout".low: should be a valid number')
    assert unknown == "space.\"train.lanes\".vales: unknown key; did you mean 'values'?"
