import pytest
import torch

from rnnlm.errors import UsageError
from rnnlm.models.build import build_model, num_parameters
from rnnlm.models.config import LanguageModelConfig, Seq2SeqConfig, TransformerConfig
from rnnlm.models.matching import TOLERANCE, layer_parameters, matched
from rnnlm.models.stack import CELLS

OTHERS = [
    *(LanguageModelConfig(cell=cell, tie_embeddings=False) for cell in CELLS),
    *(Seq2SeqConfig(attention=kind, copy_source=False) for kind in ("none", "dot", "additive")),
    TransformerConfig(),
    TransformerConfig(encoder_layers=2, num_layers=2),
]


@pytest.mark.parametrize("config", OTHERS, ids=lambda config: str(config)[:60])
@pytest.mark.parametrize("wanted", [2_000_000, 3_210_987])
def test_every_model_comes_as_close_as_promised(config, wanted: int) -> None:
    found = matched(config, wanted)
    counted = num_parameters(build_model(found, 40))["without_embeddings"] - 40
    assert abs(counted / wanted - 1) <= TOLERANCE
    changed = {name for name, value in found if value != getattr(config, name)}
    assert changed <= {"inner_width" if found.kind == "transformer" else "hidden_size"}
    assert matched(found, wanted) is found


def test_a_tighter_tolerance_takes_widths_that_are_less_convenient() -> None:
    config = LanguageModelConfig(tie_embeddings=False, num_layers=1)
    wanted = layer_parameters(config.model_copy(update={"hidden_size": 77}))
    found = matched(config, wanted, 0.001)
    assert found.hidden_size == 77
    assert matched(config, wanted, 0.1).hidden_size % 8 == 0


def test_two_matched_models_differ_by_no_more_than_one_from_what_was_wanted() -> None:
    wanted = layer_parameters(Seq2SeqConfig())
    counts = [layer_parameters(matched(config, wanted)) for config in OTHERS]
    assert max(counts) / min(counts) - 1 <= TOLERANCE


def test_sizes_that_no_width_gives() -> None:
    with pytest.raises(UsageError, match="hidden_size: no width gives 10 parameters"):
        matched(LanguageModelConfig(), 10)
    with pytest.raises(UsageError, match="no width gives"):  # the only layer is as wide as the shared table
        matched(LanguageModelConfig(num_layers=1), 50_000_000)


def test_counting_draws_nothing() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    assert layer_parameters(LanguageModelConfig(hidden_size=30_000, tie_embeddings=False)) > 10**10
    assert torch.equal(torch.random.get_rng_state(), before)
