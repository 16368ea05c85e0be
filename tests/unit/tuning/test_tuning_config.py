from typing import Any

import pytest

from rnnlm.errors import ConfigError
from rnnlm.tuning.config import TuneConfig


@pytest.mark.parametrize(
    ("dimension", "message"),
    [
        ({"kind": "uniform", "low": 2, "high": 1}, r"low should be less than high \(2\.0 is not less than 1\.0\)"),
        ({"kind": "log_uniform", "low": 0, "high": 1}, "low should be greater than 0 for log_uniform"),
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
