"""Small tasks that a sound model learns within seconds."""

import math

import pytest
import torch

from rnnlm.models.recurrent_lm import RecurrentLanguageModel
from rnnlm.models.recurrent_seq2seq import RecurrentSeq2Seq
from rnnlm.nn.dropout import MaskContext


@pytest.mark.parametrize(("copy_source", "attention"), [(True, "dot"), (False, "dot"), (False, "additive")])
def test_seq2seq_learns_to_reverse(copy_source: bool, attention: str) -> None:
    torch.manual_seed(0)
    model = RecurrentSeq2Seq(
        vocab_size=12,
        cell="lstm",
        embedding_size=32,
        hidden_size=32,
        encoder_layers=1,
        decoder_layers=2,
        attention=attention,
        copy_source=copy_source,
        share_embeddings=True,
        tie_embeddings=True,
        dropout=0.0,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    eos = torch.ones(64, 1, dtype=torch.int64)
    lengths = torch.full((64,), 6)
    for step in range(150):
        words = torch.randint(2, 12, (64, 5), generator=generator)
        target = torch.cat([words.flip(1), eos], 1)
        inputs = torch.cat([eos, target[:, :-1]], 1)
        masks = MaskContext(0, step, torch.arange(64))
        objective, nats = model.loss(torch.cat([words, eos], 1), lengths, inputs, target, masks=masks)
        (objective / target.numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert nats / target.numel() < 0.3


@pytest.mark.parametrize("cell", ["elman", "lstm"])
def test_language_model_carries_state_over_windows(cell: str) -> None:
    """A period of eleven tokens, read in windows of four: what comes next is not in the window."""
    torch.manual_seed(0)
    model = RecurrentLanguageModel(
        vocab_size=5,
        cell=cell,
        embedding_size=16,
        hidden_size=32,
        num_layers=1,
        tie_embeddings=False,
        output_dropout=0.1,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    stream = torch.tensor([1, 1, 1, 1, 2, 1, 1, 1, 3, 4, 4]).repeat(120)
    lanes = torch.stack([stream[i * 3 : i * 3 + 1201] for i in range(8)])
    state = model.init_state(8)
    for step in range(200):
        window = lanes[:, step * 4 : step * 4 + 5]
        masks = MaskContext(0, step, torch.arange(8))
        objective, nats, state = model.loss(window[:, :-1], window[:, 1:], state.detach(), masks=masks)
        (objective / 32).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert math.exp(nats / 32) < 1.15
