import pytest
import torch

from rnnlm.nn.state import State


def _state() -> State:
    return State({"hidden": torch.arange(6.0).view(3, 2), "cell": torch.arange(3)})


def test_select_picks_repeats_and_orders_rows() -> None:
    picked = _state().select(torch.tensor([2, 0, 2]))
    assert picked["hidden"].tolist() == [[4, 5], [0, 1], [4, 5]]
    assert picked["cell"].tolist() == [2, 0, 2]
    assert picked.num_rows == 3


def test_saving_and_restoring_gives_the_same() -> None:
    state = _state()
    restored = State.from_tensors(state.tensors())
    assert list(restored) == ["hidden", "cell"]
    assert len(restored) == 2
    assert all(torch.equal(restored[name], state[name]) for name in state)


def test_join_and_part_are_inverse() -> None:
    joined = State.join([_state(), _state().map(lambda tensor: tensor + 10)])
    assert set(joined) == {"0.hidden", "0.cell", "1.hidden", "1.cell"}
    assert joined.part("1")["cell"].tolist() == [10, 11, 12]


def test_concatenate_puts_rows_below_each_other() -> None:
    both = State.concatenate([_state(), _state().select(torch.tensor([1]))])
    assert both["cell"].tolist() == [0, 1, 2, 1]


def test_detach_and_device() -> None:
    state = State({"hidden": torch.ones(1, 1, requires_grad=True)})
    assert not state.detach()["hidden"].requires_grad
    assert state.to("cpu")["hidden"].device.type == "cpu"


def test_rows_have_to_agree() -> None:
    assert State({}).num_rows == 0
    with pytest.raises(AssertionError, match="rows differ"):
        State({"a": torch.zeros(1), "b": torch.zeros(2)})
