import contextlib

import pytest
import torch
from torch import nn

from rnnlm.optim.ema import TriggeredMean, WeightAverage


def scalar_model(value: float) -> nn.Module:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def test_average_follows_its_equation() -> None:
    model = scalar_model(0.0)
    average = WeightAverage(model, 0.5)
    expected = 0.0
    for n, value in enumerate([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]):
        nn.init.constant_(model.weight, value)
        average.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
        assert average.tensors()["weight"].item() == pytest.approx(expected)


def test_applied_exchanges_the_weights_and_brings_them_back_after_an_error() -> None:
    model = scalar_model(1.0)
    average = WeightAverage(model, 0.9)
    nn.init.constant_(model.weight, 3.0)
    inside = []
    with contextlib.suppress(ValueError), average.applied():
        inside.append(model.weight.item())
        raise ValueError
    assert inside == [1.0]
    assert model.weight.item() == 3.0
    assert average.tensors()["weight"].item() == 1.0


def test_it_follows_weights_whose_memory_moves() -> None:
    model = scalar_model(1.0)
    average = WeightAverage(model, 0.9)
    model.weight.data = torch.full((1, 1), 11.0)
    average.update()
    assert average.tensors()["weight"].item() == pytest.approx(1 + 0.9 * 10)


def test_loaded_average_goes_on_like_the_saved_one() -> None:
    model = scalar_model(5.0)
    first = WeightAverage(model, 0.99)
    nn.init.constant_(model.weight, 1.0)
    first.update()
    second = WeightAverage(model, 0.99)
    second.load({name: tensor.clone() for name, tensor in first.tensors().items()}, first.num_updates)
    first.update()
    second.update()
    assert torch.equal(first.tensors()["weight"], second.tensors()["weight"])


def test_the_triggered_mean_is_the_weights_then_their_mean() -> None:
    model = scalar_model(0.0)
    mean = TriggeredMean(model, patience=1)
    perplexities: list[float] = []
    kept = []
    for value, perplexity in enumerate([9.0, 8.0, 8.5, 9.5, 7.0, 6.0]):
        nn.init.constant_(model.weight, value)
        mean.update()
        kept.append(mean.tensors()["weight"].item())
        perplexities.append(perplexity)
        mean.saw_validation(perplexities)
    # 8.5 is better than 9.0, the only one more than one validation before it; 9.5 is worse than 8.0.
    assert kept == pytest.approx([0, 1, 2, 3, (3 + 4) / 2, (3 + 4 + 5) / 3])

    other = TriggeredMean(scalar_model(5.0), patience=1)
    other.load({name: tensor.clone() for name, tensor in mean.tensors().items()}, mean.num_updates)
    other.update()
    assert other.tensors()["weight"].item() == pytest.approx((3 + 4 + 5 + 5) / 4)
