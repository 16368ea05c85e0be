import itertools
import math

import pytest
import torch
from pydantic import ValidationError

from rnnlm.models.config import Seq2SeqConfig
from rnnlm.models.recurrent_seq2seq import RecurrentSeq2Seq
from rnnlm.models.stack import CELLS
from rnnlm.nn.dropout import MaskContext
from rnnlm.nn.state import State

Pairs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _model(**changes) -> RecurrentSeq2Seq:
    torch.manual_seed(0)
    settings = {
        "vocab_size": 20,
        "cell": "lstm",
        "embedding_size": 6,
        "hidden_size": 7,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "attention": "dot",
        "copy_source": True,
        "share_embeddings": True,
        "tie_embeddings": True,
        "dropout": 0.2,
    }
    return RecurrentSeq2Seq(**{**settings, **changes})


def _pairs(rows: int = 5, source: int = 6, target: int = 7) -> Pairs:
    """Random pairs of differing lengths; the first row has no padding."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, source + 1, (rows,), generator=generator).index_fill_(0, torch.tensor([0]), source)
    ends = torch.randint(2, target + 1, (rows,), generator=generator).index_fill_(0, torch.tensor([0]), target)
    sources = torch.randint(2, 20, (rows, source), generator=generator)
    tokens = torch.randint(2, 20, (rows, target), generator=generator)
    at = torch.arange(rows)
    sources[at, lengths - 1] = 1
    tokens[at, ends - 1] = 1
    sources.masked_fill_(torch.arange(source) >= lengths[:, None], 0)
    tokens.masked_fill_(torch.arange(target) >= ends[:, None], 0)
    return sources, lengths, tokens.roll(1, 1).index_fill_(1, torch.tensor([0]), 1), tokens


def _repeat(pairs: Pairs, rows: torch.Tensor) -> Pairs:
    sources, lengths, inputs, targets = (tensor[rows] for tensor in pairs)
    longest, end = int(lengths.max()), int((targets != 0).sum(1).max())
    return sources[:, :longest], lengths, inputs[:, :end], targets[:, :end]


VARIANTS = [
    {"attention": "dot"},
    {"attention": "additive", "cell": "elman"},
    {"attention": "none", "copy_source": False, "tie_embeddings": False, "share_embeddings": False},
    {"attention": "dot", "copy_source": False, "decoder_layers": 1, "encoder_layers": 2},
    {"attention": "additive", "decoder_layers": 3, "hidden_size": 8},
    {"attention": "dot", "tie_embeddings": False, "output_size": 9},
    {"attention": "dot", "input_feeding": True},
    {"attention": "additive", "input_feeding": True, "tie_embeddings": False, "output_size": 9},
    {"attention": "none", "copy_source": False, "input_feeding": True, "decoder_layers": 1},
    {"attention": "additive", "input_feeding": True, "coverage": True},
    {"attention": "dot", "input_feeding": True, "coverage": True, "decoder_layers": 1},
    *({"cell": cell} for cell in CELLS),
]


@pytest.fixture(params=VARIANTS, ids=str)
def model(request: pytest.FixtureRequest) -> RecurrentSeq2Seq:
    model = _model(**request.param)
    if model.coverage:
        torch.nn.init.uniform_(model.attention.coverage, 0.5, 1.5)
    return model


def test_steps_equal_the_whole_target(model: RecurrentSeq2Seq) -> None:
    sources, lengths, inputs, targets = pairs = _pairs()
    by_token = model.token_nats(*pairs)
    _, nats = model.loss(*pairs)
    torch.testing.assert_close(by_token.sum(dtype=torch.float64), nats)
    memory = model.encode(sources, lengths)
    state = model.init_state(memory)
    for t in range(inputs.shape[1]):
        log_probs, state = model.step(inputs[:, t], state, memory)
        torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(5))
        expected = -log_probs.gather(1, targets[:, t : t + 1])[:, 0] * (targets[:, t] != 0)
        torch.testing.assert_close(by_token[:, t], expected, rtol=1e-5, atol=1e-5)


def test_row_alone_equals_row_in_a_batch_with_dropout(model: RecurrentSeq2Seq) -> None:
    model = model.double()
    pairs = _pairs()
    rows = torch.arange(5) + 40
    separate = [
        model.loss(*_repeat(pairs, torch.tensor([row])), masks=MaskContext(0, 3, rows[row : row + 1]))[0]
        for row in range(5)
    ]
    together, _ = model.loss(*pairs, masks=MaskContext(0, 3, rows))
    torch.testing.assert_close(torch.stack(separate).sum(), together)
    without, _ = model.loss(*pairs)
    assert not torch.isclose(together, without)


@pytest.mark.parametrize("samples", [None, 6])
def test_gradients_of_pieces_sum_to_the_gradient_of_the_whole(model: RecurrentSeq2Seq, samples: int | None) -> None:
    model = model.double()
    pairs = _pairs()
    options = {"label_smoothing": 0.1, "softmax_samples": samples}

    def gradient(pieces: list[list[int]]) -> list[torch.Tensor]:
        model.zero_grad()
        for piece in pieces:
            rows = torch.tensor(piece)
            objective, _ = model.loss(*_repeat(pairs, rows), masks=MaskContext(3, 9, rows), **options)
            (objective / 30).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    whole = gradient([[0, 1, 2, 3, 4]])
    for left, right in zip(gradient([[3], [4, 0], [1, 2]]), whole, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-6)
    assert all((tensor != 0).any() for tensor in whole)


def test_prediction_is_causal(model: RecurrentSeq2Seq) -> None:
    sources, lengths, inputs, targets = _pairs(1)
    changed = inputs.clone()
    changed[:, 4:] = 2 + (changed[:, 4:] + 5) % 18
    before, after = (
        model.token_nats(sources, lengths, inputs, targets),
        model.token_nats(sources, lengths, changed, targets),
    )
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_memory_and_state_are_selected_by_rows(model: RecurrentSeq2Seq) -> None:
    sources, lengths, inputs, _ = _pairs()
    memory = model.encode(sources, lengths)
    state = model.init_state(memory)
    expected, _ = model.step(inputs[:, 0], state, memory)
    rows = torch.tensor([3, 1])
    got, after = model.step(inputs[rows, 0], State.from_tensors(state.tensors()).select(rows), memory.select(rows))
    torch.testing.assert_close(got, expected[rows], rtol=1e-5, atol=1e-5)
    assert set(after) == set(state)


def test_beams_of_a_source_share_its_memory(model: RecurrentSeq2Seq) -> None:
    sources, lengths, _, _ = _pairs()
    memory = model.encode(sources, lengths)
    rows = torch.arange(5).repeat_interleave(3)
    state = model.init_state(memory).select(rows).map(torch.randn_like)
    tokens = torch.arange(15) + 2
    shared, _ = model.step(tokens, state, memory)
    copied, _ = model.step(tokens, state, memory.select(rows))
    torch.testing.assert_close(shared, copied, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"attention": "additive", "input_feeding": True, "coverage": True}])
def test_state_and_gradient_are_finite_in_bf16_autocast(changes: dict[str, object]) -> None:
    model = _model(**changes)
    with torch.autocast("cpu", torch.bfloat16):
        objective, _ = model.loss(*_pairs(), masks=MaskContext(0, 0, torch.arange(5)))
    objective.backward()
    exact, _ = model.loss(*_pairs(), masks=MaskContext(0, 0, torch.arange(5)))
    torch.testing.assert_close(objective, exact, rtol=0.02, atol=0)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu_and_runs_in_bf16(model: RecurrentSeq2Seq) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    pairs, rows = _pairs(), torch.arange(5)
    expected, _ = model.loss(*pairs, masks=MaskContext(0, 3, rows), label_smoothing=0.1)
    model = model.cuda()
    moved = [tensor.cuda() for tensor in pairs]
    masks = MaskContext(0, 3, rows.cuda())
    objective, _ = model.loss(*moved, masks=masks, label_smoothing=0.1)
    torch.testing.assert_close(objective.cpu(), expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cuda", torch.bfloat16):
        half, _ = model.loss(*moved, masks=masks, label_smoothing=0.1)
        memory = model.encode(moved[0], moved[1])
        log_probs, _ = model.step(moved[2][:, 0], model.init_state(memory), memory)
    half.backward()
    torch.testing.assert_close(half.cpu(), expected, rtol=0.02, atol=0.1)
    assert log_probs.dtype == torch.float32
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    model = _model(copy_source=False)
    with torch.no_grad():
        model.target_embedding.weight.zero_()
    pairs = _pairs()
    _, nats = model.loss(*pairs)
    assert math.exp(nats / (pairs[3] != 0).sum()) == pytest.approx(20, rel=1e-6)


def test_empty_share_has_zero_gradients() -> None:
    model = _model()
    empty = torch.zeros(0, 3, dtype=torch.int64)
    objective, nats = model.loss(empty, torch.zeros(0, dtype=torch.int64), empty, empty)
    objective.backward()
    assert nats == 0
    assert all((parameter.grad == 0).all() for parameter in model.parameters())


@pytest.mark.parametrize(("share", "tie"), itertools.product([True, False], repeat=2))
def test_tables_are_shared_as_told(share: bool, tie: bool) -> None:
    model = _model(share_embeddings=share, tie_embeddings=tie)
    assert (model.source_embedding is model.target_embedding) == share
    assert (model.output_weight is model.target_embedding.weight) == tie
    tables = sum(tensor.shape == (20, 6) for tensor in model.state_dict().values())
    assert tables == 1 + (not share) + (not tie)


def test_attention_that_returns_costs_what_it_says() -> None:
    model = _model(dropout=0.0, copy_source=False)
    sources, lengths, inputs, targets = _pairs()
    plain, nats = model.loss(sources, lengths, inputs, targets)
    covered, same = model.loss(sources, lengths, inputs, targets, coverage_reg=2.0)
    assert same == nats
    weights = model.decode(inputs, model.encode(sources, lengths), None).weights
    again = torch.zeros(())
    for t in range(1, inputs.shape[1]):
        least = torch.minimum(weights[:, t], weights[:, :t].sum(1)).sum(-1)
        again = again + (least * (targets[:, t] != 0)).sum()
    torch.testing.assert_close(covered - plain, 2 * again, rtol=1e-4, atol=1e-4)
    without = _model(attention="none", copy_source=False)
    torch.testing.assert_close(
        without.loss(sources, lengths, inputs, targets, coverage_reg=2.0)[0],
        without.loss(sources, lengths, inputs, targets)[0],
    )


def test_input_feeding_reads_the_last_output() -> None:
    model = _model(input_feeding=True, dropout=0.0)
    sources, lengths, inputs, _ = _pairs()
    memory = model.encode(sources, lengths)
    state = model.init_state(memory)
    assert (state["fed"] == 0).all()
    decoding, after = model.decode_step(inputs[:, 0], state, memory)
    torch.testing.assert_close(after["fed"], decoding.features[:, 0])
    whole = model.decode(inputs, memory, None)
    torch.testing.assert_close(whole.features[:, :1], decoding.features)
    unfed = type(after)({**after, "fed": torch.zeros_like(after["fed"])})
    assert not torch.allclose(model.decode_step(inputs[:, 1], unfed, memory)[0].features, whole.features[:, 1:2])


@pytest.mark.parametrize("kind", ["additive", "dot"])
def test_attention_reads_where_it_was(kind: str) -> None:
    """The weights by See et al. (2017), equations 10 and 11, written out."""
    model = _model(attention=kind, input_feeding=True, coverage=True, dropout=0.0)
    plain = _model(attention=kind, input_feeding=True, dropout=0.0)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k != "attention.coverage"})
    sources, lengths, inputs, _ = pairs = _pairs()
    torch.testing.assert_close(model.token_nats(*pairs), plain.token_nats(*pairs))  # nothing is learned of it yet

    attention = model.attention
    with torch.no_grad():
        attention.coverage.uniform_(0.5, 1.5)
    memory = model.encode(sources, lengths)
    state = model.init_state(memory)
    assert (state["covered"] == 0).all()
    covered = torch.zeros(sources.shape)
    for t in range(3):
        decoding, after = model.decode_step(inputs[:, t], state, memory)
        query = after["0.hidden"][:, None]
        if kind == "dot":
            scores = (query * memory["keys"]).sum(-1) + attention.coverage * covered
        else:
            inner = attention.query(query) + memory["keys"] / 2 + covered[..., None] * attention.coverage
            scores = torch.tanh(inner) @ attention.score
        weights = torch.softmax(scores + memory["bias"], -1)
        torch.testing.assert_close(decoding.weights[:, 0], weights, rtol=1e-4, atol=1e-5)
        covered = covered + weights
        torch.testing.assert_close(after["covered"], covered, rtol=1e-4, atol=1e-5)
        state = after
    assert not torch.allclose(model.token_nats(*pairs), plain.token_nats(*pairs))


def test_coverage_needs_attention_that_goes_step_by_step() -> None:
    for changes in ({"input_feeding": False}, {"attention": "none", "copy_source": False}):
        with pytest.raises(ValidationError, match="coverage: needs attention and input_feeding"):
            Seq2SeqConfig(**{"coverage": True, "input_feeding": True, **changes})


def test_a_table_that_is_shared_fixes_what_the_output_layer_reads() -> None:
    with pytest.raises(ValidationError, match="output_size: should be none or embedding_size, 8, with tie_embeddings"):
        Seq2SeqConfig(embedding_size=8, output_size=9)
    assert _model(tie_embeddings=False, output_size=9).output_weight.shape == (20, 9)
    assert _model(output_size=6).output_weight.shape == (20, 6)
