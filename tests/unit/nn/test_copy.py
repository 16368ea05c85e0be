import torch

from rnnlm.nn.copy import CopyGate, copy_log_mass, mixture_log_probs
from rnnlm.nn.softmax import Copying, linear_cross_entropy

SOURCE = torch.tensor([[3, 5, 3, 0], [2, 2, 2, 1]])
WEIGHTS = torch.tensor([[0.2, 0.5, 0.3, 0.0], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)


def test_mass_is_summed_over_occurrences() -> None:
    target = torch.tensor([[3, 5, 4], [2, 1, 3]])
    mass = copy_log_mass(WEIGHTS[:, None].expand(-1, 3, -1), SOURCE, target).exp()
    torch.testing.assert_close(mass, torch.tensor([[0.5, 0.5, 1e-30], [0.6, 0.4, 1e-30]], dtype=torch.float64))


def test_mixture_is_a_distribution_by_its_formula() -> None:
    log_probs = torch.log_softmax(torch.randn(2, 7, dtype=torch.float64), 1)
    gate = torch.tensor([0.3, 0.9], dtype=torch.float64)
    mixed = mixture_log_probs(log_probs, gate.log(), (1 - gate).log(), WEIGHTS, SOURCE).exp()
    expected = gate[:, None] * log_probs.exp()
    for row in range(2):
        for position in range(4):
            expected[row, SOURCE[row, position]] += (1 - gate[row]) * WEIGHTS[row, position]
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(mixed.sum(1), torch.ones(2, dtype=torch.float64))


def test_training_loss_is_the_mixture_at_the_target() -> None:
    torch.manual_seed(0)
    features, table, bias = (torch.randn(*size, dtype=torch.float64) for size in ((2, 4), (7, 4), (7,)))
    target = torch.tensor([3, 6])
    log_generate, log_copy = CopyGate(input_size=4).double()(features)
    mass = copy_log_mass(WEIGHTS[:, None], SOURCE, target[:, None])[:, 0]
    _, nats = linear_cross_entropy(features, table, bias, target, copying=Copying(log_generate, log_copy + mass))
    log_probs = torch.log_softmax(features @ table.T + bias, 1)
    mixed = mixture_log_probs(log_probs, log_generate, log_copy, WEIGHTS, SOURCE)
    torch.testing.assert_close(nats, -mixed.gather(1, target[:, None])[:, 0])


def test_gate_gives_both_logarithms_in_full_precision() -> None:
    gate = CopyGate(input_size=3)
    log_generate, log_copy = gate(torch.tensor([[100.0, 0, 0], [0, 0, 0]]).requires_grad_() * 50)
    torch.testing.assert_close(torch.logaddexp(log_generate, log_copy), torch.zeros(2), rtol=0, atol=1e-6)
    assert torch.isfinite(log_generate).all()
    assert torch.isfinite(log_copy).all()
    assert gate.bfloat16()(torch.zeros(1, 3, dtype=torch.bfloat16))[0].dtype == torch.float32


def test_nothing_to_copy_gives_finite_values_and_gradients() -> None:
    scores = torch.tensor([[[0.0, -300.0]]], requires_grad=True)
    weights = torch.softmax(scores, -1)
    for target in (9, 4):  # absent from the source; present where attention is zero
        gate = torch.tensor([50.0], requires_grad=True)
        mass = copy_log_mass(weights, torch.tensor([[3, 4]]), torch.tensor([[target]]))[0]
        copying = Copying(torch.nn.functional.logsigmoid(gate), torch.nn.functional.logsigmoid(-gate) + mass)
        features = torch.zeros(1, 2, requires_grad=True)
        table = torch.zeros(10, 2).index_fill_(0, torch.tensor([5]), 400.0)
        loss, nats = linear_cross_entropy(features + 1, table, torch.zeros(10), torch.tensor([target]), copying=copying)
        gradients = torch.autograd.grad(loss, (scores, gate, features), retain_graph=True)
        assert all(torch.isfinite(tensor).all() for tensor in (loss, nats, *gradients))


def test_gradcheck_of_mass() -> None:
    scores = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[3, 5, 3], [2, 1, 2]])
    assert torch.autograd.gradcheck(lambda s: copy_log_mass(torch.softmax(s, -1), SOURCE, target), (scores,))
