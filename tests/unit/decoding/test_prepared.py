"""Decoders prepared for a CPU give what the model itself gives: in fp32 to rounding, below within bounds."""

import gc
from typing import Any

import numpy as np
import pytest
import torch

from rnnlm.decoding.beam import beam_search
from rnnlm.decoding.build import build_decoder
from rnnlm.decoding.decoder import Decoder, LanguageModelDecoder, Seq2SeqDecoder
from rnnlm.decoding.prepared import PreparedLanguageModelDecoder, PreparedSeq2SeqDecoder, is_preparable
from rnnlm.decoding.sampling import greedy, most_probable, sample, steps
from rnnlm.errors import UsageError
from rnnlm.models.build import build_model
from rnnlm.models.config import LanguageModelConfig, Seq2SeqConfig, TransformerConfig
from rnnlm.nn import inference
from rnnlm.nn.attention import AdditiveAttention
from rnnlm.nn.products import Precision, Product, supports
from rnnlm.nn.state import State

VOCAB_SIZE = 90
SEQ2SEQ: dict[str, Any] = {"embedding_size": 24, "hidden_size": 32}
CONFIGS = {
    "text": LanguageModelConfig(embedding_size=24, hidden_size=32, num_layers=3),
    "text-untied": LanguageModelConfig(embedding_size=24, hidden_size=32, num_layers=1, tie_embeddings=False),
    "text-normalized": LanguageModelConfig(embedding_size=24, hidden_size=32, num_layers=2, layer_norm=True),
    "dot-copy": Seq2SeqConfig(**SEQ2SEQ),
    "additive-copy": Seq2SeqConfig(**SEQ2SEQ, attention="additive", decoder_layers=3),
    "additive": Seq2SeqConfig(**SEQ2SEQ, attention="additive", copy_source=False, encoder_layers=2, share_embeddings=False),
    "no-attention": Seq2SeqConfig(**SEQ2SEQ, attention="none", copy_source=False, decoder_layers=1, tie_embeddings=False),
}  # fmt: skip
IDS = {"pad_id": 0, "eos_id": 1, "vocab_size": VOCAB_SIZE}
BOUNDS: dict[Precision, float] = {"fp32": 1e-5, "bf16": 0.06, "int8": 0.06}
"""Nats by which a log-probability of these models may differ."""
NORMALIZED_BOUNDS = BOUNDS | {"int8": 0.2}
"""The same behind norms, which make steps of 1/127 larger where a layer's outputs are small."""
BATCHED: dict[Precision, float] = {"fp32": 1e-4, "bf16": 0.05, "int8": 1e-4}
"""Nats by which a sequence of theirs may, with the rows that it is decoded with."""


def model_of(name: str) -> Any:
    return built(CONFIGS[name])


def built(config: Any) -> Any:
    torch.manual_seed(3)
    model = build_model(config, VOCAB_SIZE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
        for norm in (each for each in model.modules() if isinstance(each, torch.nn.LayerNorm)):
            norm.weight.copy_(torch.rand(norm.weight.shape) + 0.2)
            norm.bias.copy_(torch.randn(norm.bias.shape) / 4)
    return model


def generic(model: Any) -> Decoder:
    kind = (
        LanguageModelDecoder
        if isinstance(CONFIGS["text"], type(model)) or hasattr(model, "embedding")
        else Seq2SeqDecoder
    )
    return kind(model, **IDS)


def rows(count: int = 12) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(2, VOCAB_SIZE, size=length) for length in generator.integers(1, 14, count)]


def needs(precision: Precision) -> None:
    if not supports(precision):
        pytest.skip(f"this CPU has no {precision}")


@torch.inference_mode()
def forced(decoder: Decoder, inputs: list[np.ndarray], beams: int = 1, length: int = 6) -> torch.Tensor:
    """Log-probabilities [T, N, V] where the same tokens are fed to every decoder."""
    ids, state, memory = decoder.start(inputs)
    generator = torch.Generator().manual_seed(1)
    made = []
    for step in range(length):
        next_token, state = decoder.step(ids, state, memory)
        made.append(next_token.log_probs().clone())
        ids = torch.randint(2, VOCAB_SIZE, (len(inputs) * beams,), generator=generator)
        if step == 0:
            state = state.select(torch.arange(len(inputs)).repeat_interleave(beams))
    return torch.stack(made[1:])


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_it_gives_what_the_model_gives(name: str, precision: Precision) -> None:
    needs(precision)
    model = model_of(name)
    decoder = build_decoder(model, **IDS, precision=precision)
    assert isinstance(decoder, PreparedLanguageModelDecoder | PreparedSeq2SeqDecoder)
    expected, made = (forced(each, rows(), beams=3) for each in (generic(model), decoder))
    bounds = NORMALIZED_BOUNDS if name == "text-normalized" else BOUNDS
    assert (made - expected).abs().max() < bounds[precision]
    assert torch.allclose(made.exp().sum(-1), torch.ones(()), atol=1e-4)


def test_an_output_layer_may_be_wider_than_the_embeddings() -> None:
    model = built(
        Seq2SeqConfig(**SEQ2SEQ, attention="additive", copy_source=False, tie_embeddings=False, output_size=40)
    )
    assert model.output_weight.shape == (VOCAB_SIZE, 40)
    expected, made = (forced(each, rows(), beams=3) for each in (generic(model), build_decoder(model, **IDS)))
    assert (made - expected).abs().max() < BOUNDS["fp32"]


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
def test_additive_attention_with_exponents_of_any_size(size: float) -> None:
    torch.manual_seed(3)
    attention = AdditiveAttention(query_size=32, memory_size=24)
    with torch.no_grad():
        for weight in (attention.key.weight, attention.key.bias, attention.query.weight):
            weight.mul_(size)
    memory_BSM, lengths_B = torch.rand(5, 9, 24) * 2 - 1, torch.tensor([9, 1, 4, 9, 6])
    query_BTH = torch.rand(5, 3, 32) * 2 - 1
    prepared = inference.PreparedAttention(attention, "fp32")
    with torch.no_grad():
        expected_BTM, weights_BTS = attention(query_BTH, attention.prepare(memory_BSM, lengths_B))
        memory = State(prepared.prepare(memory_BSM, lengths_B))
        made_NM, made_NS = prepared(query_BTH.flatten(0, 1), memory)
    torch.testing.assert_close(made_NS.sum(1), torch.ones(15))
    if size < 1e4:  # beyond what counts as different
        torch.testing.assert_close(made_NS, weights_BTS.flatten(0, 1), atol=1e-4, rtol=0)
        torch.testing.assert_close(made_NM, expected_BTM.flatten(0, 1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_in_fp32_beams_and_draws_are_the_same(name: str) -> None:
    model = model_of(name)
    inputs, options = rows(), {"max_length": 12, "min_length": 2}
    pair = generic(model), build_decoder(model, **IDS)
    for run in (
        lambda decoder: beam_search(decoder, decoder.start(inputs), beam_size=4, **options),
        lambda decoder: greedy(decoder, decoder.start(inputs), **options),
        lambda decoder: sample(decoder, decoder.start(inputs), seed=5, keys=range(len(inputs)), top_k=20, **options),
    ):
        expected, made = (run(decoder) for decoder in pair)
        assert [row.tolist() for row in made.tokens] == [row.tolist() for row in expected.tokens]
        assert made.log_probs == pytest.approx(expected.log_probs, abs=1e-4)
        assert made.ended == expected.ended


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_does_not_depend_on_its_batch(name: str, precision: Precision) -> None:
    needs(precision)
    decoder = build_decoder(model_of(name), **IDS, precision=precision)
    inputs = rows(40)
    options = {"beam_size": 3, "max_length": 10}
    together = beam_search(decoder, decoder.start(inputs), **options)
    for size in (1, 7):
        for first in range(0, len(inputs), size):
            part = beam_search(decoder, decoder.start(inputs[first : first + size]), **options)
            for place, tokens in enumerate(part.tokens):
                assert tokens.tolist() == together.tokens[first + place].tolist()
                assert part.log_probs[place] == pytest.approx(together.log_probs[first + place], abs=BATCHED[precision])


@pytest.mark.parametrize("name", ["text", "text-normalized", "dot-copy"])
def test_a_large_vocabulary_has_no_table(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "TABLE_BYTES", 10)
    model = model_of(name)
    made = forced(build_decoder(model, **IDS), rows())
    assert (made - forced(generic(model), rows())).abs().max() < BOUNDS["fp32"]


@pytest.mark.parametrize(
    "config",
    [
        LanguageModelConfig(cell="gru", embedding_size=8, hidden_size=8),
        LanguageModelConfig(embedding_size=8, hidden_size=8, residual=True),
        LanguageModelConfig(embedding_size=8, hidden_size=8, softmax_cutoffs=(10,)),
        Seq2SeqConfig(embedding_size=8, hidden_size=8, input_feeding=True),
        Seq2SeqConfig(embedding_size=8, hidden_size=8, cell="minlstm"),
        TransformerConfig(width=8, num_heads=2, num_layers=1),
    ],
)
def test_other_models_are_decoded_by_themselves_in_fp32(config: Any) -> None:
    model = build_model(config, VOCAB_SIZE)
    assert not is_preparable(model)
    assert type(build_decoder(model, **IDS)) in (LanguageModelDecoder, Seq2SeqDecoder)
    if supports("bf16"):
        with pytest.raises(UsageError, match="bf16 is for LSTM models"):
            build_decoder(model, **IDS, precision="bf16")


def test_a_precision_that_the_machine_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnlm.decoding.build.supports", lambda precision: precision == "fp32")
    with pytest.raises(UsageError, match="no instructions for int8"):
        build_decoder(model_of("text"), **IDS, precision="int8")


@pytest.mark.parametrize("precision", BOUNDS)
def test_a_long_stream_keeps_nothing(precision: Precision) -> None:
    needs(precision)
    decoder = build_decoder(model_of("text"), **IDS, precision=precision)

    def kept() -> int:
        gc.collect()
        return sum(isinstance(each, torch.Tensor) for each in gc.get_objects())

    stream = steps(decoder, decoder.start(rows(1)), most_probable, max_length=400, min_length=400)
    counts = [kept() for number, _ in enumerate(stream) if number in (20, 390)]
    assert counts[0] == counts[1]


@pytest.mark.skipif(not supports("int8"), reason="this CPU has no instructions for int8")
@pytest.mark.parametrize("outputs", [40, 300])
def test_few_rows_in_int8_are_as_in_a_larger_batch(outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    product = Product(torch.randn(outputs, 64, generator=generator), torch.randn(outputs, generator=generator), "int8")
    rows = torch.randint(1, 256, (20, 64), generator=generator).to(torch.uint8)
    begun = torch.randn(20, outputs, generator=generator)
    whole, added = product(rows), product.add_to(begun.clone(), rows)
    for count in (1, 2, 7, 8):
        assert torch.equal(product(rows[:count]), whole[:count])
        total = begun[:count].clone()
        assert product.add_to(total, rows[:count]) is total
        assert torch.equal(total, added[:count])
