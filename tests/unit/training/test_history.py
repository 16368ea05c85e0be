from functools import partial

import pytest
import torch

from rnnlm.errors import RnnlmError
from rnnlm.training.collective import Alone
from rnnlm.training.config import GuardConfig
from rnnlm.training.guard import check
from rnnlm.training.history import History, Measured, Measurements, StepRow


def measured(step: int, nats: float = 20.0, norm: float = 1.0) -> Measured:
    return Measured(step, torch.tensor(nats, dtype=torch.float64), torch.tensor(norm), 0.1, tokens=10, seconds=0.5)


def test_pulling_completes_all_pending_rows_in_order() -> None:
    history = History()
    measurements = Measurements(Alone(), history)
    measurements.pull()
    assert len(history) == 0
    measurements.add(measured(1))
    measurements.add(measured(2, nats=40.0))
    assert len(measurements) == 2
    measurements.pull()
    assert (len(measurements), len(history)) == (0, 2)
    assert history.columns()["loss_nats"] == [2.0, 4.0]
    assert history.last() == StepRow(2, 4.0, 0.1, 1.0, 10, 0.5)


@pytest.mark.parametrize(("nats", "norm"), [(float("nan"), 1.0), (float("inf"), 1.0), (1.0, float("nan"))])
def test_a_loss_or_gradient_that_is_not_finite_ends_training(nats: float, norm: float) -> None:
    measurements = Measurements(Alone(), History(), partial(check, settings=GuardConfig()))
    measurements.add(measured(3, nats, norm))
    with pytest.raises(RnnlmError, match=r"diverged at step 3.*optim\.lr \(now 0\.1\)"):
        measurements.pull()


def test_what_is_saved_is_what_is_loaded() -> None:
    history = History()
    for step in range(1, 5):
        history.append(StepRow(step, step / 3, 0.1, 0.2, 10, 0.5))
    history.validations.append({"step": 4, "valid/perplexity": 7.0})
    other = History()
    other.load(history.tensors(), history.validations)
    other.append(StepRow(5, 0.0, 0.0, 0.0, 1, 0.1))
    assert other.columns(0, 4) == history.columns()
    assert other.validations == history.validations
    assert other.columns(4)["step"] == [5.0]
