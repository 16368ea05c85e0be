import pytest
import torch

from rnnlm.nn import products


@pytest.mark.parametrize(
    ("name", "amx", "avx512_bf16", "fast"),
    [
        ("AMD EPYC", False, True, True),
        ("AMD EPYC", False, False, False),
        ("Intel Xeon", True, True, True),
        ("Intel Xeon", False, True, False),
        ("Intel Xeon", False, False, False),
    ],
)
def test_bf16_is_faster_by_amx_or_by_the_instructions_of_amd(
    name: str, amx: bool, avx512_bf16: bool, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"cpu_name": name, "amx_tile": amx, "avx512_bf16": avx512_bf16}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert products.has_fast_bf16() == fast
