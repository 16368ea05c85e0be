import math
from typing import Any

import numpy as np
import pytest
import torch

from rnnlm import experiment as experiments
from rnnlm.data.ragged import Ragged
from rnnlm.errors import ConfigError
from rnnlm.evaluation import calibration
from rnnlm.evaluation.calibration import best_logit_scale
from rnnlm.models.build import build_model
from rnnlm.models.config import LanguageModelConfig, ModelConfig, TransformerConfig
from rnnlm.models.language_model import LanguageModel

VOCAB_SIZE = 12
SIZES: dict[str, Any] = {"embedding_size": 8, "hidden_size": 8, "num_layers": 1}
MODELS: dict[str, ModelConfig] = {
    "tied": LanguageModelConfig(**SIZES, layer_norm=True),
    "untied": LanguageModelConfig(**SIZES, tie_embeddings=False),
    "clusters": LanguageModelConfig(**SIZES, tie_embeddings=False, softmax_cutoffs=(5, 9)),
    "transformer": TransformerConfig(width=8, num_heads=2, inner_width=8, num_layers=1, context_length=8),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    """With biases, and logits of some size, which a text tells much about."""
    torch.manual_seed(1)
    made = build_model(MODELS[request.param], VOCAB_SIZE).eval()
    assert isinstance(made, LanguageModel)
    with torch.no_grad():
        made.output_bias.normal_()
        if made.softmax_cutoffs:
            made.cluster_weight.normal_()
    made.scale_logits(1.5 / plain_logits(made).std().item())
    return made


@torch.no_grad()
def plain_logits(model: LanguageModel) -> torch.Tensor:
    """After each token as the first of a text, without biases."""
    hidden_BX, _ = model.hidden_step(torch.arange(VOCAB_SIZE), model.init_state(VOCAB_SIZE))
    return hidden_BX @ model.output_weight.t()


@pytest.fixture
def text(model: LanguageModel) -> Ragged:
    """Text that the model has written itself."""
    generator = torch.Generator().manual_seed(2)
    ids_B, state = torch.full((16,), 3), model.init_state(16)
    written = []
    for _ in range(400):
        written.append(ids_B)
        logits_BV, state = model.step(ids_B, state)
        ids_B = torch.multinomial(logits_BV.softmax(1), 1, generator=generator)[:, 0]
    return Ragged.from_rows([torch.stack(written, 1).flatten().numpy().astype(np.int32)])


def test_logits_less_their_biases_are_scaled(model: LanguageModel) -> None:
    before_BV = plain_logits(model)
    model.scale_logits(0.5)
    torch.testing.assert_close(plain_logits(model), before_BV / 2)


def test_of_a_text_of_its_own_a_model_is_as_sure_as_it_should_be(model: LanguageModel, text: Ragged) -> None:
    assert best_logit_scale(model, text) == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("factor", [0.4, 1.7, 3.0])
def test_a_model_that_is_too_sure_or_not_sure_enough_is_put_right(
    model: LanguageModel, text: Ragged, factor: float
) -> None:
    right = best_logit_scale(model, text)
    model.scale_logits(factor)
    found = best_logit_scale(model, text)
    assert found * factor == pytest.approx(right, abs=0.02)


def test_the_factor_is_the_best(model: LanguageModel, text: Ragged) -> None:
    model.scale_logits(1.5)
    best = best_logit_scale(model, text)
    lanes_BT = torch.from_numpy(text.values).long().view(calibration.LANES, -1)
    nats = {}
    for factor in (1.0, best, best * 0.98, best * 1.02):
        model.scale_logits(factor)
        nats_BT, _ = model.token_nats(lanes_BT[:, :-1], lanes_BT[:, 1:], model.init_state(calibration.LANES))
        nats[factor] = nats_BT.sum(dtype=torch.float64).item()
        model.scale_logits(1 / factor)
    assert min(nats, key=lambda factor: nats[factor]) == best
    assert nats[best] < nats[1.0]


def test_a_text_without_two_tokens_for_a_lane_says_nothing(model: LanguageModel) -> None:
    assert best_logit_scale(model, Ragged.from_rows([[3] * (2 * calibration.LANES - 1)])) == 1.0


def test_the_factor_stays_within_bounds(model: LanguageModel, text: Ragged) -> None:
    model.scale_logits(100.0)
    assert best_logit_scale(model, text) == calibration.LOWEST
    model.scale_logits(1e-5)
    found = best_logit_scale(model, text)
    assert found == calibration.HIGHEST
    assert math.isfinite(found)


def test_a_shared_table_without_a_norm_has_no_weights_to_scale() -> None:
    model = build_model(LanguageModelConfig(**SIZES), VOCAB_SIZE)
    assert isinstance(model, LanguageModel)
    with pytest.raises(ValueError, match="layer_norm = true or tie_embeddings = false"):
        model.scale_logits(0.9)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=translate", "model.kind=seq2seq"], "train.calibrate: should be false for task 'translate'"),
        (["task=text"], "train.calibrate: needs model.layer_norm = true or model.tie_embeddings = false"),
    ],
)
def test_what_cannot_be_calibrated_is_said_before_anything_runs(overrides: list[str], message: str) -> None:
    values = {"name": "x", "task": "text", "data": {"train": "a"}, "model": {"kind": "language_model"}}
    with pytest.raises(ConfigError, match=message):
        experiments.build(values, ["train.calibrate=true", *overrides], "x")
