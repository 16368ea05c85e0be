import numpy as np
import pytest
import torch

from rnnlm.data.ragged import Ragged
from rnnlm.evaluation.adaptive import score_dynamically, score_with_cache
from rnnlm.evaluation.config import CacheConfig, DynamicConfig
from rnnlm.evaluation.perplexity import score_documents
from rnnlm.models.build import build_model
from rnnlm.models.config import LanguageModelConfig
from rnnlm.models.language_model import LanguageModel


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    config = LanguageModelConfig(embedding_size=6, hidden_size=8, num_layers=1, tie_embeddings=False)
    built = build_model(config, 12)
    assert isinstance(built, LanguageModel)
    return built.eval()


def _documents(*lengths: int) -> Ragged:
    generator = np.random.default_rng(0)
    return Ragged.from_rows([[*generator.integers(2, 12, length), 1] for length in lengths])


def test_the_cache_by_its_equation(model: LanguageModel) -> None:
    settings = CacheConfig(size=4, theta=0.7, weight=0.3)
    tokens = _documents(9, 6)
    found = score_with_cache(model, tokens, settings)
    for row in range(2):
        ids = torch.tensor(tokens[row].tolist())
        inputs, targets = torch.cat([torch.tensor([1]), ids[:-1]])[None], ids
        with torch.no_grad():
            hidden = model(inputs, model.init_state(1))[0][0]
            nats = model.token_nats(inputs, targets[None], model.init_state(1))[0][0]
        total = 0.0
        for t in range(len(ids)):
            earlier = range(max(0, t - 4), t)
            weights = torch.softmax(0.7 * torch.stack([hidden[t] @ hidden[i] for i in earlier]), 0) if earlier else []
            copied = sum(float(w) for w, i in zip(weights, earlier, strict=True) if targets[i] == targets[t])
            share = 0.3 if earlier else 0.0
            total -= np.log((1 - share) * np.exp(-float(nats[t])) + share * copied)
        assert found[row] == pytest.approx(total, rel=1e-5)


def test_an_empty_cache_takes_no_share_of_the_probability(model: LanguageModel) -> None:
    first = Ragged.from_rows([[token] for token in range(1, 12)])
    found = score_with_cache(model, first, CacheConfig(weight=0.5))
    np.testing.assert_allclose(found, score_documents(model, first), rtol=1e-5)


def test_a_cache_of_no_weight_changes_nothing_and_batching_neither(model: LanguageModel) -> None:
    tokens = _documents(300, 5, 0, 270)
    plain = score_documents(model, tokens)
    np.testing.assert_allclose(score_with_cache(model, tokens, CacheConfig(weight=0)), plain, rtol=1e-5)
    cached = score_with_cache(model, tokens, CacheConfig(size=20))
    np.testing.assert_allclose(score_with_cache(model, tokens, CacheConfig(size=20), max_rows=1), cached, rtol=1e-5)
    assert not np.allclose(cached, plain)


def test_dynamic_evaluation_learns_a_repeated_text_and_leaves_the_model_as_it_was(model: LanguageModel) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokens = Ragged.from_rows([[2, 3, 4, 5] * 50 + [1], [6, 7] * 20 + [1]])
    plain = score_documents(model, tokens)
    dynamic = score_dynamically(model, tokens, DynamicConfig(lr=0.5, decay=0.0, window=5))
    assert (dynamic < 0.8 * plain).all()
    alone = score_dynamically(model, tokens.slice(1, 2), DynamicConfig(lr=0.5, decay=0.0, window=5))
    assert alone[0] == pytest.approx(dynamic[1])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    still = score_dynamically(model, tokens, DynamicConfig(lr=1e-12, window=7))
    np.testing.assert_allclose(still, plain, rtol=1e-5)
