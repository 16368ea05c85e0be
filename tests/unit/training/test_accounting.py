import pytest

from rnnlm.models.config import LanguageModelConfig, Seq2SeqConfig
from rnnlm.training.accounting import matmul_weights, training_bytes, training_flops_per_token, utilisation
from rnnlm.training.build import seeded_model


def test_language_model_counts_the_output_layer_once_and_no_lookup() -> None:
    sizes = {"embedding_size": 6, "hidden_size": 6, "num_layers": 2}
    layers = 2 * 4 * 6 * (6 + 6)
    for tied in (True, False):
        model = seeded_model(LanguageModelConfig(tie_embeddings=tied, **sizes), 50, 0)
        assert matmul_weights(model) == layers + 50 * 6
        assert training_flops_per_token(model) == 6 * (layers + 50 * 6)


def test_of_clusters_the_first_step_counts() -> None:
    sizes = {"embedding_size": 6, "hidden_size": 6, "num_layers": 1}
    model = seeded_model(LanguageModelConfig(softmax_cutoffs=(20, 30), **sizes), 50, 0)
    assert matmul_weights(model) == 4 * 6 * (6 + 6) + (20 + 2) * 6


def test_a_source_embedding_of_its_own_costs_no_arithmetic() -> None:
    sizes = {"embedding_size": 6, "hidden_size": 6}
    shared = seeded_model(Seq2SeqConfig(share_embeddings=True, **sizes), 50, 0)
    own = seeded_model(Seq2SeqConfig(share_embeddings=False, **sizes), 50, 0)
    assert matmul_weights(shared) == matmul_weights(own)


def test_utilisation_and_memory() -> None:
    assert utilisation(6e6, 1e3, 1e11) == pytest.approx(0.06)
    model = seeded_model(LanguageModelConfig(embedding_size=6, hidden_size=6, num_layers=1), 50, 0)
    total = sum(weight.numel() for weight in model.parameters())
    assert training_bytes(model) == 16 * total
    assert training_bytes(model, moments=0, averages=1) == 12 * total
