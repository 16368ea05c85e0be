import math
from typing import Any

import pytest
import torch

from rnnlm.models.recurrent_lm import RECURRENT_SITE, RecurrentLanguageModel
from rnnlm.models.stack import CELLS
from rnnlm.nn.dropout import MaskContext, matrix_mask
from rnnlm.nn.state import State

DROPOUT = {"embedding_dropout": 0.1, "input_dropout": 0.2, "hidden_dropout": 0.3, "output_dropout": 0.2}


def _model(**changes) -> RecurrentLanguageModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "cell": "lstm", "embedding_size": 6, "hidden_size": 8, "num_layers": 2}
    return RecurrentLanguageModel(**{**sizes, "tie_embeddings": True, **DROPOUT, **changes})


def _window(rows: int = 4, length: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 20, (rows, length + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:].clone()


VARIANTS = [
    *({"cell": cell, "num_layers": layers} for cell in CELLS for layers in (1, 3)),
    {"tie_embeddings": False},
    {"softmax_cutoffs": (5, 12)},
    {"softmax_cutoffs": (5, 12), "tie_embeddings": False},
    {"residual": True, "num_layers": 3},
    {"layer_norm": True, "num_layers": 3},
    {"residual": True, "layer_norm": True, "cell": "minlstm", "hidden_size": 6, "num_layers": 3},
]


@pytest.fixture(params=VARIANTS, ids=str)
def model(request: pytest.FixtureRequest) -> RecurrentLanguageModel:
    return _model(**request.param)


def test_steps_windows_and_token_nats_agree(model: RecurrentLanguageModel) -> None:
    inputs, targets = _window()
    state = model.init_state(4).map(torch.randn_like)
    _, nats, after = model.loss(inputs, targets, state)
    by_token, _ = model.token_nats(inputs, targets, state)
    torch.testing.assert_close(by_token.sum(dtype=torch.float64), nats)

    stepped, steps = state, []
    for t in range(inputs.shape[1]):
        logits, stepped = model.step(inputs[:, t], stepped)
        steps.append(torch.nn.functional.cross_entropy(logits, targets[:, t], reduction="none"))
    torch.testing.assert_close(torch.stack(steps, 1), by_token, rtol=1e-5, atol=1e-5)
    for name in after:
        torch.testing.assert_close(stepped[name], after[name], rtol=1e-5, atol=1e-6)

    first, between = model.token_nats(inputs[:, :3], targets[:, :3], state)
    second, _ = model.token_nats(inputs[:, 3:], targets[:, 3:], between)
    torch.testing.assert_close(torch.cat([first, second], 1), by_token, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
def test_dropped_weights_reach_the_kernel(cell: str) -> None:
    plain = _model(cell=cell, num_layers=2, **dict.fromkeys(DROPOUT, 0.0))
    dropping = _model(cell=cell, num_layers=2, weight_drop=0.4, **dict.fromkeys(DROPOUT, 0.0))
    inputs, _ = _window()
    state = plain.init_state(4).map(torch.randn_like)
    masks = MaskContext(seed=1, step=2, rows=torch.arange(4))
    with torch.no_grad():
        for layer, recurrent in enumerate(plain.cells):
            recurrent.weight_hh.mul_(matrix_mask(recurrent.weight_hh, 0.4, masks, RECURRENT_SITE + layer))
            assert 0.2 < (recurrent.weight_hh == 0).float().mean() < 0.6
    features, after = dropping(inputs, state, masks)
    expected, expected_after = plain(inputs, state)
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(after["1.hidden"], expected_after["1.hidden"])
    features.sum().backward()
    for recurrent, dropped in zip(dropping.cells, plain.cells, strict=True):
        torch.testing.assert_close(recurrent.weight_hh.grad == 0, dropped.weight_hh == 0)
    same, _ = dropping(inputs, state)
    assert not torch.allclose(same, features)


def test_all_pieces_of_a_batch_drop_the_same_weights_and_each_step_others() -> None:
    weight = torch.ones(12, 7)
    first, second = (matrix_mask(weight, 0.5, MaskContext(1, 5, torch.tensor(rows)), 3) for rows in ([0, 1], [2, 3, 4]))
    torch.testing.assert_close(first, second)
    assert not torch.equal(first, matrix_mask(weight, 0.5, MaskContext(1, 6, torch.tensor([0])), 3))
    assert not torch.equal(first, matrix_mask(weight, 0.5, MaskContext(1, 5, torch.tensor([0])), 4))
    assert set(first.unique().tolist()) == {0.0, 2.0}


def test_activations_and_their_change_cost_what_they_say() -> None:
    model = _model()
    inputs, targets = _window()
    targets[1, 4:] = 0
    masks = MaskContext(seed=1, step=2, rows=torch.arange(4))
    state = model.init_state(4)
    plain, nats, _ = model.loss(inputs, targets, state, masks=masks)
    costly, same, _ = model.loss(inputs, targets, state, masks=masks, activation_reg=2.0)
    dropped, _ = model(inputs, state, masks)
    torch.testing.assert_close(costly - plain, 2 * (dropped.square().mean(-1) * (targets != 0)).sum())
    assert same == nats

    still = _model(output_dropout=0.0)
    plain, _, _ = still.loss(inputs, targets, state, masks=masks)
    changing, _, _ = still.loss(inputs, targets, state, masks=masks, temporal_activation_reg=3.0)
    hidden, _ = still(inputs, state, masks)
    change = (hidden[:, 1:] - hidden[:, :-1]).square().mean(-1) * (targets[:, 1:] != 0)
    torch.testing.assert_close(changing - plain, 3 * change.sum(), rtol=1e-4, atol=1e-4)


def test_a_sampled_vocabulary_is_for_training_alone() -> None:
    model = _model()
    inputs, targets = _window()
    state = model.init_state(4)
    _, exact, _ = model.loss(inputs, targets, state)
    assert torch.equal(model.loss(inputs, targets, state, softmax_samples=5)[1], exact)
    masks = MaskContext(seed=1, step=2, rows=torch.arange(4))
    _, whole, _ = model.loss(inputs, targets, state, masks=masks)
    _, sampled, _ = model.loss(inputs, targets, state, masks=masks, softmax_samples=5)
    assert sampled != whole
    assert sampled == pytest.approx(float(whole), rel=0.2)


def test_residual_layers_add_and_normalized_ones_have_unit_variance() -> None:
    inputs, _ = _window()
    model = _model(residual=True, hidden_size=6, num_layers=1, input_dropout=0.0)
    state = model.init_state(4)
    output, _ = model(inputs, state)
    embedded = model.embedding(inputs)
    torch.testing.assert_close(output, embedded + next(iter(model.cells)).sequence(embedded, state.part("0"))[0])
    normalized, _ = _model(layer_norm=True)(inputs, _model().init_state(4))
    torch.testing.assert_close(normalized.var(-1, unbiased=False), torch.ones(4, 7), rtol=0.02, atol=0)


def test_a_cutoff_beyond_the_vocabulary_begins_no_cluster() -> None:
    assert _model(softmax_cutoffs=(5, 20)).clusters.cutoffs == (5,)
    assert _model(softmax_cutoffs=(20,)).clusters is None


def test_padding_has_no_loss_and_no_gradient() -> None:
    model = _model()
    inputs, targets = _window()
    targets[:, 5:] = 0
    targets[2] = 0
    longer, _, _ = model.loss(inputs, targets, model.init_state(4))
    gradients = torch.autograd.grad(longer, list(model.parameters()))
    rows = torch.tensor([0, 1, 3])
    shorter, _, _ = model.loss(inputs[rows, :5], targets[rows, :5], model.init_state(3))
    torch.testing.assert_close(longer, shorter)
    for left, right in zip(gradients, torch.autograd.grad(shorter, list(model.parameters())), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
    by_token, _ = model.token_nats(inputs, targets, model.init_state(4))
    assert ((by_token > 0) == (targets != 0)).all()


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"softmax_samples": 7, "label_smoothing": 0.1}], ids=str)
def test_gradients_of_pieces_sum_to_the_gradient_of_the_whole(options: dict[str, Any]) -> None:
    model = _model().double()
    inputs, targets = _window(6)
    targets[1, 4:] = 0

    def gradient(pieces: list[torch.Tensor]) -> list[torch.Tensor]:
        model.zero_grad()
        for rows in pieces:
            masks = MaskContext(3, 9, rows + 100)
            state = model.init_state(rows.numel())
            objective, _, _ = model.loss(inputs[rows], targets[rows], state, masks=masks, **options)
            (objective / 40).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    whole = gradient([torch.arange(6)])
    for left, right in zip(gradient([torch.tensor([4, 0]), torch.tensor([1, 2, 3, 5])]), whole, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-6)
    assert all((tensor != 0).any() for tensor in whole)


def test_dropout_depends_on_step_and_row_only_and_not_on_the_mode() -> None:
    model = _model()
    inputs, _ = _window()
    state = model.init_state(4)
    masks = MaskContext(0, 1, torch.arange(4))
    dropped, _ = model(inputs, state, masks)
    again, _ = model.eval()(inputs, state, masks)
    other, _ = model(inputs, state, MaskContext(0, 2, torch.arange(4)))
    undropped, _ = model(inputs, state)
    assert torch.equal(dropped, again)
    assert not torch.allclose(dropped, other)
    assert not torch.allclose(dropped, undropped)


def test_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    model = _model()
    with torch.no_grad():
        model.embedding.weight.zero_()
    inputs, targets = _window()
    _, nats, _ = model.loss(inputs, targets, model.init_state(4))
    assert math.exp(nats / targets.numel()) == pytest.approx(20, rel=1e-6)


def test_fresh_model_is_nearly_uniform() -> None:
    model = _model(vocab_size=200, embedding_size=64, hidden_size=64)
    inputs, targets = _window()
    _, nats, _ = model.loss(inputs, targets, model.init_state(4))
    assert math.exp(nats / targets.numel()) == pytest.approx(200, rel=0.15)


def test_smoothing_changes_the_objective_not_the_nats() -> None:
    model = _model()
    inputs, targets = _window()
    objective, nats, _ = model.loss(inputs, targets, model.init_state(4), label_smoothing=0.2)
    plain, same, _ = model.loss(inputs, targets, model.init_state(4))
    assert torch.equal(nats, same)
    assert not nats.requires_grad
    assert nats.dtype == torch.float64
    torch.testing.assert_close(plain.double(), nats)
    assert objective != plain


def test_empty_share_has_zero_gradients() -> None:
    model = _model()
    empty = torch.zeros(0, 7, dtype=torch.int64)
    objective, nats, state = model.loss(empty, empty, model.init_state(0))
    objective.backward()
    assert nats == 0
    assert state.num_rows == 0
    assert all((parameter.grad == 0).all() for parameter in model.parameters())


def test_state_is_saved_selected_and_restored() -> None:
    model = _model()
    inputs, targets = _window()
    _, _, state = model.loss(inputs, targets, model.init_state(4))
    restored = State.from_tensors(state.detach().tensors())
    rows = torch.tensor([2, 0])
    expected, _ = model.token_nats(inputs, targets, state)
    got, _ = model.token_nats(inputs[rows], targets[rows], restored.select(rows))
    torch.testing.assert_close(got, expected[rows], rtol=1e-5, atol=1e-5)


def test_no_prediction_at_or_before_a_token_moves_with_it(model: RecurrentLanguageModel) -> None:
    inputs, targets = _window()
    changed = inputs.clone()
    changed[:, 4] = changed[:, 4] % 19 + 1
    before, _ = model.token_nats(inputs, targets, model.init_state(4))
    after, _ = model.token_nats(changed, targets, model.init_state(4))
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("cell", CELLS)
def test_loss_in_bf16_is_within_one_percent_of_fp32(cell: str) -> None:
    model = _model(cell=cell, num_layers=3)
    inputs, targets = _window()
    masks = MaskContext(seed=1, step=2, rows=torch.arange(4))
    state = model.init_state(4).map(torch.randn_like)
    _, exact, _ = model.loss(inputs, targets, state, masks=masks)
    with torch.autocast("cpu", torch.bfloat16):
        objective, nats, after = model.loss(inputs, targets, state, masks=masks)
    objective.backward()
    torch.testing.assert_close(nats, exact, rtol=0.01, atol=0)
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
