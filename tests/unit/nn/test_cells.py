import pytest
import torch

from rnnlm.models.stack import CELLS as BY_NAME
from rnnlm.nn.cells import Cell, Cells, ElmanCell, LstmCell
from rnnlm.nn.scan_cells import MinGruCell, MinLstmCell, QrnnCell
from rnnlm.nn.state import State

CELLS = list(BY_NAME.values())


def _random_state(cell: Cell, rows: int) -> State:
    return cell.init_state(rows).map(torch.randn_like)


def _close(left: State, right: State) -> None:
    for name in right:
        torch.testing.assert_close(left[name], right[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", CELLS)
def test_sequence_equals_steps_and_pieces(kind: type[Cell]) -> None:
    torch.manual_seed(0)
    cell = kind(input_size=4, hidden_size=6)
    x = torch.randn(3, 9, 4)
    start = _random_state(cell, 3)
    whole, after = cell.sequence(x, start)

    state, steps = start, []
    for t in range(9):
        output, state = cell.step(x[:, t], state)
        steps.append(output)
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=1e-5, atol=1e-6)
    _close(state, after)

    first, state = cell.sequence(x[:, :4], start)
    second, state = cell.sequence(x[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-5, atol=1e-6)
    _close(state, after)


@pytest.mark.parametrize("kind", CELLS)
def test_gradient_through_pieces_equals_gradient_through_the_whole(kind: type[Cell]) -> None:
    torch.manual_seed(0)
    cell = kind(input_size=4, hidden_size=6)
    x = torch.randn(2, 6, 4)

    def gradient(cuts: list[int]) -> list[torch.Tensor]:
        state, total = cell.init_state(2), torch.zeros(())
        for piece in x.split(cuts, dim=1):
            output, state = cell.sequence(piece, state)
            total = total + output.square().sum()
        return list(torch.autograd.grad(total, list(cell.parameters())))

    for pieces, whole in zip(gradient([1, 2, 3]), gradient([6]), strict=True):
        torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-5)


def test_detached_state_cuts_the_gradient() -> None:
    cell = LstmCell(input_size=2, hidden_size=3)
    x = torch.randn(1, 2, 2, requires_grad=True)
    _, state = cell.sequence(x, cell.init_state(1))
    output, _ = cell.sequence(torch.randn(1, 2, 2), state.detach())
    output.sum().backward()
    assert x.grad is None


@pytest.mark.parametrize("kind", CELLS)
def test_output_is_causal(kind: type[Cell]) -> None:
    cell = kind(input_size=4, hidden_size=6)
    x = torch.randn(2, 5, 4)
    changed = x.clone()
    changed[:, 3:] += 1
    output, _ = cell.sequence(x, cell.init_state(2))
    other, _ = cell.sequence(changed, cell.init_state(2))
    torch.testing.assert_close(output[:, :3], other[:, :3])
    assert not torch.allclose(output[:, 3:], other[:, 3:])


@pytest.mark.parametrize("kind", CELLS)
def test_gradients_are_those_of_finite_differences(kind: type[Cell]) -> None:
    torch.manual_seed(0)
    cell = kind(input_size=3, hidden_size=4).double()
    names = [name for name, _ in cell.named_parameters()]
    start = _random_state(cell, 2)
    x = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    leaves = [x, *(tensor.requires_grad_() for tensor in start.values()), *cell.parameters()]

    def outputs(x: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
        state = State(dict(zip(start, rest, strict=False)))
        parameters = dict(zip(names, rest[len(start) :], strict=True))
        output, after = torch.func.functional_call(
            _Sequence(cell), {f"cell.{k}": v for k, v in parameters.items()}, (x, state)
        )
        return output, *after.values()

    assert torch.autograd.gradcheck(outputs, leaves)


class _Sequence(torch.nn.Module):
    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        return self.cell.sequence(x, state)


@pytest.mark.parametrize("kind", CELLS)
def test_a_saved_state_goes_on(kind: type[Cell]) -> None:
    cell = kind(input_size=4, hidden_size=6)
    x = torch.randn(3, 8, 4)
    whole, _ = cell.sequence(x, cell.init_state(3))
    _, state = cell.sequence(x[:, :5], cell.init_state(3))
    again = State.from_tensors(state.tensors())
    picked, _ = cell.sequence(x[[2, 0], 5:], again.select(torch.tensor([2, 0])))
    torch.testing.assert_close(picked, whole[[2, 0], 5:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", CELLS)
def test_bf16_stays_within_two_percent(kind: type[Cell]) -> None:
    torch.manual_seed(0)
    cell = kind(input_size=32, hidden_size=64)
    x = torch.randn(8, 20, 32)
    expected, _ = cell.sequence(x, cell.init_state(8))
    with torch.autocast("cpu", torch.bfloat16):
        output, state = cell.sequence(x, cell.init_state(8))
        step, after = cell.step(x[:, 0], cell.init_state(8))
    assert {tensor.dtype for tensor in (*state.values(), *after.values())} == {torch.float32}
    scale = expected.square().mean().sqrt()
    assert (output.float() - expected).square().mean().sqrt() < 0.02 * scale
    assert (step.float() - expected[:, 0]).square().mean().sqrt() < 0.02 * expected[:, 0].square().mean().sqrt()


def test_minimal_cells_start_with_memories_of_one_to_a_hundred_steps() -> None:
    for kind, most in ((MinGruCell, 1e-3), (MinLstmCell, 0.01)):
        cell = kind(input_size=8, hidden_size=16)
        _, after = cell.step(torch.zeros(1, 8), State({"hidden": torch.ones(1, 16)}))
        lost = 1 - after["hidden"][0]
        torch.testing.assert_close(lost[-1], torch.tensor(1 / 101), rtol=0, atol=most)
        assert lost[0] > 0.3
        assert (lost.diff() < 0).all()
        kept_steps = (1 - lost) / lost
        steps = torch.logspace(0, 2, 16)
        wanted = steps if kind is MinGruCell else 0.98 * (1 + steps)
        torch.testing.assert_close(kept_steps, wanted, rtol=0.01, atol=0)


def test_qrnn_reads_this_input_and_the_last_one() -> None:
    cell = QrnnCell(input_size=1, hidden_size=1)
    assert cell.init_state(2)["input"].shape == (2, 1)
    with torch.no_grad():
        cell.weight_xh.copy_(torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]]))
        cell.bias_h.zero_()
    output, after = cell.sequence(torch.tensor([[[0.1], [0.2]]]), cell.init_state(1))
    first = 0.5 * torch.tanh(torch.tensor(0.2))
    second = 0.5 * first + 0.5 * torch.tanh(torch.tensor(0.1 + 0.4))
    torch.testing.assert_close(output[0, :, 0], 0.5 * torch.stack([first, second]))
    assert after["input"].item() == pytest.approx(0.2)


def test_initial_weights() -> None:
    cell = LstmCell(input_size=8, hidden_size=16)
    torch.testing.assert_close(cell.bias_h.view(4, 16).mean(1), torch.tensor([0.0, 1.0, 0.0, 0.0]))
    for gate in cell.weight_hh.view(4, 16, 16):
        torch.testing.assert_close(gate @ gate.T, torch.eye(16), rtol=0, atol=1e-5)
    assert cell.weight_xh.abs().max() <= 0.25


def test_zero_buffer_is_not_saved_and_state_has_the_weights_type() -> None:
    cell = ElmanCell(input_size=2, hidden_size=3).double()
    assert set(cell.state_dict()) == {"weight_xh", "weight_hh", "bias_h"}
    assert cell.init_state(2)["hidden"].dtype == torch.float64
    assert cell.init_state(2, dtype=torch.float32)["hidden"].dtype == torch.float32
    assert "hidden_size=3" in repr(cell)
    assert [type(member) for member in Cells([cell])] == [ElmanCell]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", CELLS)
def test_gpu_equals_cpu_also_in_bf16(kind: type[Cell]) -> None:
    torch.manual_seed(0)
    cell = kind(input_size=16, hidden_size=32)
    x = torch.randn(3, 5, 16)
    expected, _ = cell.sequence(x, cell.init_state(3))
    cell = cell.cuda()
    torch.backends.cudnn.allow_tf32 = False
    output, _ = cell.sequence(x.cuda(), cell.init_state(3))
    torch.testing.assert_close(output.cpu(), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cuda", torch.bfloat16):
        half, state = cell.sequence(x.cuda(), cell.init_state(3))
        step, _ = cell.step(x[:, 0].cuda(), cell.init_state(3))
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    torch.testing.assert_close(half.float().cpu(), expected, rtol=0.05, atol=0.02)
    torch.testing.assert_close(step.float().cpu(), expected[:, 0], rtol=0.05, atol=0.02)
