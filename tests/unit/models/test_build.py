from rnnlm.models.build import build_model, num_parameters
from rnnlm.models.config import LanguageModelConfig, Seq2SeqConfig
from rnnlm.models.language_model import LanguageModel
from rnnlm.models.seq2seq import Seq2Seq


def test_language_model_and_its_parameters() -> None:
    model = build_model(LanguageModelConfig(embedding_size=3, hidden_size=5, num_layers=2), 11)
    assert isinstance(model, LanguageModel)
    layers = 4 * 5 * (3 + 5 + 1) + 4 * 3 * (5 + 3 + 1)
    assert num_parameters(model) == {"total": 11 * 3 + layers + 11, "without_embeddings": layers + 11}
    untied = build_model(LanguageModelConfig(embedding_size=3, hidden_size=5, num_layers=1, tie_embeddings=False), 11)
    layers = 4 * 5 * (3 + 5 + 1)
    assert num_parameters(untied) == {"total": 11 * (3 + 5) + layers + 11, "without_embeddings": layers + 11}


def test_seq2seq_and_its_parameters() -> None:
    config = Seq2SeqConfig(embedding_size=4, hidden_size=6, cell="elman", encoder_layers=1, decoder_layers=2)
    model = build_model(config, 11)
    assert isinstance(model, Seq2Seq)
    encoder = 2 * 3 * (4 + 3 + 1)
    decoder = 6 * (4 + 6 + 1) + 6 * (12 + 6 + 1)
    rest = (6 * 12 + 12) + 6 * 6 + (12 + 1) + (12 * 4 + 4) + 11
    assert num_parameters(model)["without_embeddings"] == encoder + decoder + rest
    assert num_parameters(model)["total"] == encoder + decoder + rest + 11 * 4
