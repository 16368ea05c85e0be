import pytest
import torch

from rnnlm.nn.cells import LstmCell
from rnnlm.nn.dropout import MaskContext
from rnnlm.nn.encoder import BidirectionalEncoder, Reversal, join_features


def _encoder(layers: int = 2) -> BidirectionalEncoder:
    torch.manual_seed(0)
    sizes = [3, *[8] * (layers - 1)]
    pairs = [(LstmCell(input_size=n, hidden_size=4), LstmCell(input_size=n, hidden_size=4)) for n in sizes]
    return BidirectionalEncoder(pairs, dropout=0.3, first_site=10)


def test_reversal_turns_rows_inside_their_lengths() -> None:
    x = torch.arange(8.0).view(2, 4, 1).requires_grad_()
    reverse = Reversal(torch.tensor([4, 3]), 4)
    turned = reverse(x)
    assert turned[..., 0].tolist() == [[3, 2, 1, 0], [6, 5, 4, 7]]
    assert torch.equal(reverse(turned), x)
    (turned * torch.arange(8.0).view(2, 4, 1)).sum().backward()
    assert x.grad[..., 0].tolist() == [[3, 2, 1, 0], [6, 5, 4, 7]]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_equals_torch_on_packed_sequences(layers: int) -> None:
    encoder = _encoder(layers)
    reference = torch.nn.LSTM(3, 4, num_layers=layers, bidirectional=True, batch_first=True)
    with torch.no_grad():
        for layer in range(layers):
            for cells, suffix in ((encoder.forward_cells, ""), (encoder.backward_cells, "_reverse")):
                cell = list(cells)[layer]
                getattr(reference, f"weight_ih_l{layer}{suffix}").copy_(cell.weight_xh)
                getattr(reference, f"weight_hh_l{layer}{suffix}").copy_(cell.weight_hh)
                getattr(reference, f"bias_ih_l{layer}{suffix}").copy_(cell.bias_h)
                getattr(reference, f"bias_hh_l{layer}{suffix}").zero_()
    x, lengths = torch.randn(3, 6, 3), torch.tensor([6, 2, 4])
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    output, (last, _) = reference(packed)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(output, batch_first=True)
    memory, summary = encoder(x, lengths)
    real = torch.arange(6) < lengths[:, None]
    torch.testing.assert_close(memory[real], expected[real], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(summary, torch.cat([last[-2], last[-1]], 1), rtol=1e-5, atol=1e-6)


def test_row_alone_equals_row_in_batch_with_dropout() -> None:
    encoder = _encoder()
    x = torch.randn(2, 6, 3)
    memory, summary = encoder(x, torch.tensor([6, 3]), MaskContext(0, 1, torch.tensor([7, 9])))
    alone, alone_summary = encoder(x[1:, :3], torch.tensor([3]), MaskContext(0, 1, torch.tensor([9])))
    torch.testing.assert_close(memory[1:, :3], alone)
    torch.testing.assert_close(summary[1:], alone_summary)
    undropped, _ = encoder(x, torch.tensor([6, 3]))
    assert not torch.allclose(memory, undropped)


def test_joined_features_keep_time_outermost() -> None:
    joined = join_features([torch.ones(2, 3, 1), torch.zeros(2, 3, 2)])
    assert joined.shape == (2, 3, 3)
    assert joined.transpose(0, 1).is_contiguous()
