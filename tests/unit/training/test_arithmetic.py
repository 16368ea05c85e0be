import numpy as np
import pytest
import torch

from rnnlm.training.arithmetic import resolve
from rnnlm.training.config import ComputeConfig


def test_a_cpu_computes_in_fp32_unless_asked_otherwise() -> None:
    assert resolve(ComputeConfig(), "cpu").precision == "fp32"
    assert resolve(ComputeConfig(precision="bf16"), "cpu").precision == "bf16"


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_computes_in_bf16_where_it_can(has_bf16: bool, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert resolve(ComputeConfig(), "cuda:0").precision == precision


def test_bf16_is_for_products_only() -> None:
    weight = torch.ones(4, 4)
    with resolve(ComputeConfig(precision="bf16"), "cpu").context():
        assert (weight @ weight).dtype == torch.bfloat16
    with resolve(ComputeConfig(precision="fp32"), "cpu").context():
        assert (weight @ weight).dtype == torch.float32


def test_threads_are_set_only_when_asked_for() -> None:
    before = torch.get_num_threads()
    try:
        resolve(ComputeConfig(), "cpu")
        assert torch.get_num_threads() == before
        resolve(ComputeConfig(threads=2), "cpu")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_on_a_cpu_an_array_is_not_copied() -> None:
    values = np.zeros(3, np.int64)
    tensor = resolve(ComputeConfig(), "cpu").tensor(values)
    values[1] = 7
    assert tensor.tolist() == [0, 7, 0]
