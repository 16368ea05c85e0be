import torch

from rnnlm.nn.dropout import MaskContext
from rnnlm.nn.embedding import Embedding


def test_inputs_have_unit_variance_and_the_table_suits_an_output_layer() -> None:
    torch.manual_seed(0)
    embedding = Embedding(vocab_size=500, embedding_size=64)
    x = embedding(torch.arange(500).view(10, 50))
    assert x.shape == (10, 50, 64)
    assert abs(x.std() - 1) < 0.02
    assert abs(embedding.weight.std() * 8 - 1) < 0.02
    torch.testing.assert_close(x[2, 7], embedding(torch.tensor([107]))[0])
    assert x.transpose(0, 1).is_contiguous()


def test_whole_word_types_are_dropped() -> None:
    embedding = Embedding(vocab_size=50, embedding_size=4)
    ids = torch.randint(50, (6, 40))
    masks = MaskContext(0, 3, torch.arange(6))
    dropped = embedding.dropped(ids, 0.4, masks, 0)
    is_zero = (dropped == 0).all(-1)
    zero_types = set(ids[is_zero].tolist())
    assert 5 < len(zero_types) < 35
    assert zero_types.isdisjoint(ids[~is_zero].tolist())
    torch.testing.assert_close(dropped[~is_zero], embedding(ids)[~is_zero] / 0.6)
    assert torch.equal(embedding.dropped(ids, 0.4, None, 0), embedding(ids))
    assert torch.equal(embedding.dropped(ids, 0.0, masks, 0), embedding(ids))
