from collections.abc import Iterator

import numpy as np
import pytest
import torch

from rnnlm.data.ragged import Ragged
from rnnlm.models.config import LanguageModelConfig, ModelConfig, TransformerConfig
from rnnlm.nn.cells import LstmCell
from rnnlm.nn.products import has_fast_bf16
from rnnlm.optim.config import OptimConfig
from rnnlm.training import arithmetic
from rnnlm.training.arithmetic import auto_precision, gains_from_bf16, resolve
from rnnlm.training.build import build_run, seeded_model
from rnnlm.training.config import ComputeConfig, TrainConfig
from rnnlm.training.loop import training_steps

SMALL = LstmCell(input_size=2, hidden_size=3)


def test_a_cpu_computes_in_fp32_unless_asked_otherwise() -> None:
    assert resolve(ComputeConfig(), "cpu", SMALL).precision == "fp32"
    assert resolve(ComputeConfig(precision="bf16"), "cpu", SMALL).precision == "bf16"


TRANSFORMER = TransformerConfig(width=32, num_heads=2, inner_width=64, num_layers=2)


def _lstm(size: int) -> LanguageModelConfig:
    return LanguageModelConfig(embedding_size=32, hidden_size=size, tie_embeddings=False)


@pytest.mark.parametrize(
    ("has_bf16", "gains", "precision"), [(True, True, "bf16"), (True, False, "fp32"), (False, True, "fp32")]
)
def test_a_cpu_computes_in_bf16_where_that_is_faster(
    has_bf16: bool, gains: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "has_fast_bf16", lambda: has_bf16)
    assert auto_precision("cpu", gains) == precision


@pytest.mark.parametrize(
    ("config", "gains"),
    [
        (_lstm(64), True),
        (_lstm(63), False),
        (_lstm(64).model_copy(update={"cell": "gru"}), False),
        (TRANSFORMER, True),
    ],
)
def test_a_model_gains_where_it_was_measured(config: ModelConfig, gains: bool) -> None:
    assert gains_from_bf16(seeded_model(config, 9, 0)) == gains


def _validation_nats(precision: str, model: ModelConfig) -> float:
    """After a short training on numbers that are counted up."""
    random = np.random.default_rng(0)
    train, valid = (
        Ragged.from_rows([2 + (random.integers(22) + np.arange(random.integers(3, 20))) % 22 for _ in range(rows)])
        for rows in (400, 60)
    )
    run = build_run(
        seeded_model(model, 24, 0),
        train_tokens={"text": train},
        valid_tokens={"text": valid},
        train=TrainConfig(lanes=8, bptt_length=12, max_steps=40, validate_every=40),
        optim=OptimConfig(lr=2e-3),
        compute=ComputeConfig(precision=precision, threads=1),  # type: ignore[arg-type]
        seed=3,
    )
    assert run.arithmetic.precision == ("bf16" if precision == "auto" else precision)
    *_, last = training_steps(run)
    assert last.validation is not None
    return float(np.log(last.validation[run.task.metric]))


@pytest.mark.skipif(not has_fast_bf16(), reason="bf16 is not faster on this CPU")
@pytest.mark.parametrize(
    "model", [_lstm(64), _lstm(192), _lstm(512), TRANSFORMER], ids=["64", "192", "512", "transformer"]
)
def test_what_a_cpu_chooses_learns_as_well_as_fp32(model: ModelConfig) -> None:
    """The bound of quality: half a percent of nats on the valid split."""
    assert _validation_nats("auto", model) == pytest.approx(_validation_nats("fp32", model), rel=0.005)


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_computes_in_bf16_where_it_can(has_bf16: bool, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert resolve(ComputeConfig(), "cuda:0", SMALL).precision == precision


def test_bf16_is_for_products_only() -> None:
    weight = torch.ones(4, 4)
    with resolve(ComputeConfig(precision="bf16"), "cpu", SMALL).context():
        assert (weight @ weight).dtype == torch.bfloat16
    with resolve(ComputeConfig(precision="fp32"), "cpu", SMALL).context():
        assert (weight @ weight).dtype == torch.float32


def test_threads_are_set_only_when_asked_for() -> None:
    before = torch.get_num_threads()
    try:
        resolve(ComputeConfig(), "cpu", SMALL)
        assert torch.get_num_threads() == before
        resolve(ComputeConfig(threads=2), "cpu", SMALL)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_on_a_cpu_an_array_is_not_copied() -> None:
    values = np.zeros(3, np.int64)
    tensor = resolve(ComputeConfig(), "cpu", SMALL).tensor(values)
    values[1] = 7
    assert tensor.tolist() == [0, 7, 0]


@pytest.fixture
def usual_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("usual_products")
@pytest.mark.parametrize(("errors", "kept"), [((6e-5, 1.2e-4), "medium"), ((6e-5, 0.1), "highest")])
def test_products_in_fp32_are_fast_only_where_they_are_as_exact(
    errors: tuple[float, float], kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remaining = iter(errors)
    monkeypatch.setattr(arithmetic, "_product_error", lambda: next(remaining))
    monkeypatch.setattr(arithmetic, "is_intel", lambda: False)
    arithmetic.choose_fp32_products()
    assert torch.get_float32_matmul_precision() == kept


@pytest.mark.usefixtures("usual_products")
def test_intel_multiplies_in_fp32_as_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "_product_error", lambda: 6e-5)
    monkeypatch.setattr(arithmetic, "is_intel", lambda: True)
    arithmetic.choose_fp32_products()
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.usefixtures("usual_products")
def test_products_in_fp32_stay_fp32_on_this_cpu() -> None:
    usual = arithmetic._product_error()
    resolve(ComputeConfig(precision="fp32"), "cpu", torch.nn.Linear(2, 2))
    assert 0 < arithmetic._product_error() <= arithmetic.MOST_ERROR * usual < 1e-3
