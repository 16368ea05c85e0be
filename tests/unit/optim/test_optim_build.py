import pytest
import torch
from torch import nn

from rnnlm.models.build import build_model
from rnnlm.models.config import LanguageModelConfig, Seq2SeqConfig
from rnnlm.optim.build import build_optimizer, decay_groups
from rnnlm.optim.config import OptimConfig


def names_of(model: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    wanted = {id(parameter) for parameter in parameters}
    return {name for name, parameter in model.named_parameters() if id(parameter) in wanted}


@pytest.mark.parametrize("tied", [True, False])
def test_only_matrices_of_layers_decay(tied: bool) -> None:
    model = build_model(LanguageModelConfig(embedding_size=8, hidden_size=8, num_layers=1, tie_embeddings=tied), 20)
    groups = build_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    layers = {"cells.0.weight_xh", "cells.0.weight_hh"} | (set() if tied else {"untied_weight"})
    assert names_of(model, groups[0]["params"]) == layers
    assert names_of(model, groups[1]["params"]) == {"embedding.weight", "cells.0.bias_h", "output_bias"}


def test_every_parameter_of_a_pair_model_is_in_one_group() -> None:
    model = build_model(Seq2SeqConfig(embedding_size=8, hidden_size=8), 20)
    groups = build_optimizer(model, OptimConfig()).param_groups
    together = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(together) == sorted(id(parameter) for parameter in model.parameters())
    assert "target_embedding.weight" in names_of(model, groups[1]["params"])


def test_torch_embeddings_do_not_decay_and_empty_groups_are_left_out() -> None:
    (group,) = decay_groups(nn.Sequential(nn.Embedding(4, 3)), 0.1, 0.0)
    assert group["weight_decay"] == 0.0


@pytest.mark.parametrize("config", [LanguageModelConfig, Seq2SeqConfig])
def test_tables_decay_where_they_are_told_to(config: type[LanguageModelConfig | Seq2SeqConfig]) -> None:
    model = build_model(config(embedding_size=8, hidden_size=8), 20)
    layers, others, tables = build_optimizer(model, OptimConfig(weight_decay=0.3, embedding_decay=0.2)).param_groups
    assert [group["weight_decay"] for group in (layers, others, tables)] == [0.3, 0.0, 0.2]
    names = {name for name, _ in model.named_parameters()}
    assert names_of(model, tables["params"]) == {name for name in names if name.endswith("embedding.weight")}
    assert all(parameter.ndim == 1 for parameter in others["params"])
    assert sum(len(group["params"]) for group in (layers, others, tables)) == len(names)


def test_the_decay_of_an_update_is_a_share_of_the_rate() -> None:
    model = nn.Embedding(4, 3)
    optimizer = torch.optim.AdamW(decay_groups(model, 0.0, 0.5), lr=0.1)
    model.weight.grad = torch.zeros_like(model.weight)
    before = model.weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before * (1 - 0.1 * 0.5))


def test_algorithms_and_settings() -> None:
    model = nn.Linear(3, 2)
    adamw = build_optimizer(model, OptimConfig(beta1=0.8, beta2=0.9))
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["betas"] == (0.8, 0.9)
    sgd = build_optimizer(model, OptimConfig(algorithm="sgd", lr=0.5, weight_decay=0.0))
    model.weight.grad, model.bias.grad = torch.ones_like(model.weight), torch.ones_like(model.bias)
    expected = model.weight.detach() - 0.5
    sgd.step()
    assert torch.equal(model.weight, expected)
