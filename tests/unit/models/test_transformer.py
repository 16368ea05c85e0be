"""The Transformers keep the contracts of the recurrent models they are compared with."""

import pytest
import torch

from rnnlm.models.build import build_model, num_parameters
from rnnlm.models.config import TransformerConfig
from rnnlm.models.transformer_lm import TransformerLanguageModel
from rnnlm.models.transformer_seq2seq import TransformerSeq2Seq
from rnnlm.nn import transformer
from rnnlm.nn.dropout import MaskContext, dropout
from rnnlm.nn.state import State
from rnnlm.nn.transformer import KeyDropout, SelfAttention, rotation, sliding_window, unseen_mask

SMALL = {"width": 8, "num_heads": 2, "inner_width": 12, "num_layers": 2}


def _language_model(**changes) -> TransformerLanguageModel:
    torch.manual_seed(0)
    model = build_model(TransformerConfig(**{**SMALL, "context_length": 5, "dropout": 0.0, **changes}), 20)
    assert isinstance(model, TransformerLanguageModel)
    return model


def _pair_model(**changes) -> TransformerSeq2Seq:
    torch.manual_seed(0)
    model = build_model(TransformerConfig(**{**SMALL, "encoder_layers": 2, "copy_source": True, **changes}), 20)
    assert isinstance(model, TransformerSeq2Seq)
    return model


def _tokens(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(2, 20, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cutoffs", [(), (5, 12)])
def test_windows_steps_and_pieces_agree_beyond_the_context(cutoffs: tuple[int, ...]) -> None:
    model = _language_model(softmax_cutoffs=cutoffs).eval()
    tokens = _tokens(3, 13)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    whole, after = model.token_nats(inputs, targets, model.init_state(3))

    state, pieces = model.init_state(3), []
    for begin, end in ((0, 1), (1, 4), (4, 11), (11, 12)):
        nats, state = model.token_nats(inputs[:, begin:end], targets[:, begin:end], state)
        pieces.append(nats)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-5, atol=1e-5)

    state, steps = model.init_state(3), []
    for t in range(12):
        logits, state = model.step(inputs[:, t], state)
        steps.append(torch.nn.functional.cross_entropy(logits, targets[:, t], reduction="none"))
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=1e-5, atol=1e-5)
    for name in after:
        torch.testing.assert_close(state[name], after[name], rtol=1e-5, atol=1e-5)


def test_a_token_sees_as_many_tokens_as_the_layers_hand_on_and_none_that_comes_later() -> None:
    model = _language_model(num_layers=1)
    tokens = _tokens(1, 12)
    changed = tokens.clone()
    changed[0, 4] = (changed[0, 4] - 2 + 1) % 18 + 2
    before, _ = model(tokens, model.init_state(1))
    after, _ = model(changed, model.init_state(1))
    differs = (before - after).abs().amax(-1)[0] > 1e-7
    assert differs.tolist() == [4 <= t < 4 + 5 for t in range(12)]


def test_a_fresh_row_beside_old_ones_sees_nothing_but_itself() -> None:
    model = _language_model()
    _, old = model(_tokens(1, 9), model.init_state(1))
    mixed = type(old).concatenate([old, model.init_state(1)])
    tokens = _tokens(1, 3, seed=2).expand(2, -1)
    together, _ = model(tokens, mixed)
    alone, _ = model(tokens[:1], model.init_state(1))
    torch.testing.assert_close(together[1:], alone)
    assert not torch.allclose(together[:1], alone)


def test_products_of_turned_vectors_depend_on_their_distance_alone() -> None:
    query, key = torch.randn(2, 1, 1, 1, 8)
    positions = torch.tensor([[3, 0], [90_003, 90_000]])
    products = [(rotation(at[:1], 1, 8)(query) * rotation(at[1:], 1, 8)(key)).sum() for at in positions]
    torch.testing.assert_close(products[0], products[1], rtol=1e-4, atol=1e-4)
    window = rotation(torch.tensor([7]), 4, 8)
    torch.testing.assert_close(window.cosine[0, 2], rotation(torch.tensor([9]), 1, 8).cosine[0, 0])


def test_sliding_window_by_hand() -> None:
    seen = sliding_window(torch.tensor([2, 0]), 2, 3)[:, 0].int().tolist()
    assert seen == [[[1, 1, 1, 0], [0, 1, 1, 1]], [[0, 0, 1, 0], [0, 0, 1, 1]]]


def test_pieces_of_a_batch_have_its_dropout_masks() -> None:
    x = torch.ones(4, 3, 50)
    whole = dropout(x, 0.5, MaskContext(1, 2, torch.tensor([5, 6, 7, 8])), 3)
    part = dropout(x[2:], 0.5, MaskContext(1, 2, torch.tensor([7, 8])), 3)
    torch.testing.assert_close(whole[2:], part)
    assert not torch.equal(whole[0, 0], whole[0, 1])
    assert not torch.equal(whole[0, 0], whole[1, 0])
    assert whole.mean() == pytest.approx(1, abs=0.15)


def test_pairs_steps_equal_the_whole_and_padding_does_not_leak() -> None:
    model = _pair_model(dropout=0.0).eval()
    sources, lengths = _tokens(3, 6), torch.tensor([6, 2, 4])
    sources[torch.arange(6) >= lengths[:, None]] = 0
    tokens = _tokens(3, 6, seed=3)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    whole = model.token_nats(sources, lengths, inputs, targets)
    alone = model.token_nats(sources[1:2, :2], lengths[1:2], inputs[1:2], targets[1:2])
    torch.testing.assert_close(alone, whole[1:2], rtol=1e-5, atol=1e-5)

    # Two rows of each source, as in a beam; the second reads other tokens.
    memory = model.encode(sources, lengths)
    state = model.init_state(memory).select(torch.arange(3).repeat_interleave(2))
    others = _tokens(3, 5, seed=4)
    steps = []
    for t in range(5):
        rows = torch.stack([inputs[:, t], others[:, t]], 1).flatten()
        log_probs, state = model.step(rows, state, memory)
        torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(6))
        steps.append(-log_probs[::2].gather(1, targets[:, t, None])[:, 0])
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=1e-5, atol=1e-5)


def test_gradients_of_pieces_sum_to_the_gradient_of_the_whole() -> None:
    model = _pair_model(dropout=0.3).double()
    sources, lengths, tokens = _tokens(4, 5), torch.tensor([5, 3, 4, 5]), _tokens(4, 6, seed=3)

    def gradient(rows: torch.Tensor) -> list[torch.Tensor]:
        masks = MaskContext(seed=1, step=2, rows=rows)
        part = (sources[rows], lengths[rows], tokens[rows, :-1], tokens[rows, 1:])
        objective, _ = model.loss(*part, masks=masks, label_smoothing=0.1)
        return list(torch.autograd.grad(objective, list(model.parameters())))

    pieces = zip(gradient(torch.tensor([0, 1])), gradient(torch.tensor([2, 3])), strict=True)
    for (left, right), whole in zip(pieces, gradient(torch.arange(4)), strict=True):
        torch.testing.assert_close(left + right, whole)


def test_parameters_and_shares_of_the_config() -> None:
    layer = 4 * 8 * 8 + 2 * 8 * 12 + 12 + 8 + 2 * 16
    count = num_parameters(_language_model())
    assert count["without_embeddings"] == 2 * layer + 16 + 20
    assert count["total"] == count["without_embeddings"] + 20 * 8
    plain = _pair_model(copy_source=False)
    assert plain.attention is None
    assert plain.copy_gate is None
    with pytest.raises(ValueError, match="multiple of 2"):
        TransformerConfig(width=10, num_heads=4)


def test_dropped_keys_are_not_seen_by_any_query_of_a_head() -> None:
    drop = KeyDropout(0.6, 7)
    masks = MaskContext(seed=1, step=2, rows=torch.tensor([3, 4]))
    unseen = drop(2, 9, masks)
    assert unseen.shape == (2, 2, 1, 9)
    assert set(unseen.unique().tolist()) == {-1e4, 0.0}
    assert torch.equal(drop(2, 6, masks), unseen[..., :6])  # whatever padding there is
    assert drop(2, 9, None) is None
    assert drop(64, 500, masks).ne(0).float().mean() == pytest.approx(0.6, abs=0.01)

    attention = SelfAttention(width=8, num_heads=2, drop=drop)
    x, turn = torch.randn(2, 9, 8), rotation(torch.zeros(1, dtype=torch.int64), 9, 4)
    before, _ = attention(x, turn, None, masks=masks)
    hidden = unseen[0, :, 0].lt(0).all(0).nonzero().flatten().tolist()
    assert hidden, "a key that neither head sees"
    changed = x.clone()
    changed[0, hidden[0]] += 1
    after, _ = attention(changed, turn, None, masks=masks)
    moved = (after - before)[0].abs().amax(-1) > 0
    assert moved.tolist() == [place == hidden[0] for place in range(9)]


def test_a_token_all_of_whose_keys_are_dropped_sees_those_that_it_may() -> None:
    attention = SelfAttention(width=8, num_heads=2, drop=KeyDropout(0.999999, 7))
    x, turn = torch.randn(1, 3, 8), rotation(torch.zeros(1, dtype=torch.int64), 3, 4)
    unseen = unseen_mask(torch.ones(3, 3, dtype=torch.bool).tril()[None, None])
    dropped, _ = attention(x, turn, unseen, masks=MaskContext(0, 0, torch.tensor([1])))
    whole, _ = attention(x, turn, unseen)
    torch.testing.assert_close(dropped, whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_window_in_blocks_is_the_window_at_once(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attention = SelfAttention(width=8, num_heads=2, drop=KeyDropout(0.3, 7))
    context, length = 6, 11
    x = torch.randn(2, length, 8, requires_grad=True)
    turn = rotation(torch.tensor([4, 2]), length, 4)
    unseen = unseen_mask(sliding_window(torch.tensor([4, 2]), length, context))
    cache = State({name: torch.randn(2, context - 1, 8) for name in ("keys", "values")})
    masks = MaskContext(0, 0, torch.tensor([1, 9]))

    def run(block: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        monkeypatch.setattr(transformer, "_BLOCK", block)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            read, _ = attention(x, turn, unseen, cache, masks)
        (gradient,) = torch.autograd.grad(read.float().square().sum(), x)
        return read.float(), gradient

    wanted = run(100, torch.float32)
    tolerance = {"fp32": 1e-5, "bf16": 3e-2}[precision]
    for got, want in zip(run(4, {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]), wanted, strict=True):
        assert (got - want).abs().max() <= tolerance * want.abs().max()


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [2], [3, 1]])
def test_a_row_drops_the_same_keys_in_any_batch(rows: list[int]) -> None:
    model = _pair_model(dropout=0.2, attention_dropout=0.3)
    sources, lengths, tokens = _tokens(4, 5), torch.tensor([5, 3, 4, 5]), _tokens(4, 6, seed=3)
    sources[torch.arange(5) >= lengths[:, None]] = 0

    def nats(chosen: list[int]) -> torch.Tensor:
        at = torch.tensor(chosen)
        most = int(lengths[at].max())
        masks = MaskContext(seed=1, step=2, rows=at)
        return model.loss(sources[at, :most], lengths[at], tokens[at, :-1], tokens[at, 1:], masks=masks)[0]

    torch.testing.assert_close(nats(rows), torch.stack([nats([row]) for row in rows]).sum())
    assert not torch.isclose(nats([0, 1, 2, 3]), model.loss(sources, lengths, tokens[:, :-1], tokens[:, 1:])[0])


def test_a_longer_context_makes_the_cache_a_full_one() -> None:
    """Weights of a window of 5 read 30 tokens as a model that sees all of them at once."""
    model = _language_model(attention_dropout=0.1)
    tokens = _tokens(2, 30)
    windowed = model.init_state(2)
    model.context_length = 31
    state, outputs = model.init_state(2), []
    for t in range(30):
        hidden, state = model.hidden_step(tokens[:, t], state)
        outputs.append(hidden)
    whole = _language_model(context_length=64)
    expected, _ = whole(tokens, whole.init_state(2))
    torch.testing.assert_close(torch.stack(outputs, 1), expected, rtol=1e-4, atol=1e-5)
    assert state["0.keys"].shape == (2, 30, 8)
    assert windowed["0.keys"].shape == (2, 4, 8)


def test_in_bf16_both_models_stay_close_to_fp32() -> None:
    model, tokens = _language_model(attention_dropout=0.2, dropout=0.1), _tokens(3, 13)
    masks = MaskContext(0, 1, torch.arange(3))
    _, exact, _ = model.loss(tokens[:, :-1], tokens[:, 1:], model.init_state(3), masks=masks)
    with torch.autocast("cpu", torch.bfloat16):
        objective, nats, state = model.loss(tokens[:, :-1], tokens[:, 1:], model.init_state(3), masks=masks)
    objective.backward()
    torch.testing.assert_close(nats, exact, rtol=0.01, atol=0)
    assert state["0.keys"].dtype == torch.float32
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    pairs = _pair_model(attention_dropout=0.2)
    given = (_tokens(3, 6), torch.tensor([6, 2, 4]), _tokens(3, 5), _tokens(3, 5, seed=4))
    _, exact = pairs.loss(*given, masks=masks)
    with torch.autocast("cpu", torch.bfloat16):
        _, nats = pairs.loss(*given, masks=masks)
    torch.testing.assert_close(nats, exact, rtol=0.01, atol=0)
