"""Other people's code at the same jobs, as it is shipped; `make bench-peers` makes the environment that this runs in.

.venv-peers/bin/python tests/benchmarks/peers.py PEER train|decode JOB [--threads N] [--beam 5]
"""

import argparse
import importlib
import logging
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jobs import JOBS, SENTENCES, PairJob, TextJob, serve
from torch import Tensor, nn

Work = Callable[[], int]


def _windows(job: TextJob) -> Tensor:
    """Random tokens [N, T + 1, B]: inputs are all but the last step of a window, targets all but the first."""
    generator = np.random.default_rng(0)
    return torch.from_numpy(generator.integers(3, job.V, (40, job.T + 1, job.B), dtype=np.int64))


def _updates(model: nn.Module, loss_of: Callable[[int], tuple[Tensor, int]]) -> Work:
    """Plain gradient descent on clipped gradients, as in PyTorch's example of word language models."""
    number = 0

    def step() -> int:
        nonlocal number
        loss, tokens = loss_of(number % 40)
        number += 1
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.grad is not None:
                    weight.add_(weight.grad, alpha=-0.1)
        return tokens

    return step


class _Plain(nn.Module):
    """`nn.Embedding`, `nn.LSTM`, `nn.Linear`: what people write first, and the layout of PyTorch's own example."""

    def __init__(self, job: TextJob) -> None:
        super().__init__()
        self.drop = nn.Dropout(job.dropout)
        self.embedding = nn.Embedding(job.V, job.E)
        self.layers = nn.LSTM(job.E, job.H, job.L, dropout=job.dropout)
        self.output = nn.Linear(job.H, job.V)

    def forward(self, ids_TB: Tensor, state: Any) -> tuple[Tensor, Any]:
        out_TBH, state = self.layers(self.drop(self.embedding(ids_TB)), state)
        return self.output(self.drop(out_TBH)), state


def torch_training(job: TextJob | PairJob) -> Work:
    """`nn.LSTM` without anything around it."""
    assert isinstance(job, TextJob)
    assert not job.tied
    model, data = _Plain(job), _windows(job)
    state: Any = tuple(torch.zeros(job.L, job.B, job.H) for _ in range(2))

    def loss_of(number: int) -> tuple[Tensor, int]:
        nonlocal state
        state = tuple(each.detach() for each in state)
        logits_TBV, state = model(data[number, :-1], state)
        return nn.functional.cross_entropy(logits_TBV.view(-1, job.V), data[number, 1:].reshape(-1)), job.B * job.T

    return _updates(model, loss_of)


def fastai_training(job: TextJob | PairJob) -> Work:
    """fastai's AWD-LSTM with its tied linear decoder."""
    from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_lm_config
    from fastai.text.models.core import get_language_model

    assert isinstance(job, TextJob)
    sizes = {"emb_sz": job.E, "n_hid": job.H, "n_layers": job.L, "weight_p": job.weight_drop, "embed_p": 0.0}
    dropout = dict.fromkeys(("input_p", "hidden_p", "output_p"), job.dropout)
    model = get_language_model(AWD_LSTM, job.V, config={**awd_lstm_lm_config, **sizes, **dropout})
    data = _windows(job)

    def loss_of(number: int) -> tuple[Tensor, int]:
        logits_BTV = model(data[number, :-1].t().contiguous())[0]
        targets_BT = data[number, 1:].t()
        return nn.functional.cross_entropy(logits_BTV.reshape(-1, job.V), targets_BT.reshape(-1)), job.B * job.T

    return _updates(model, loss_of)


def _joeynmt(job: PairJob) -> Any:
    from joeynmt.model import build_model
    from joeynmt.vocabulary import Vocabulary

    special = SimpleNamespace(
        unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>", sep_token=None,
        unk_id=0, pad_id=1, bos_id=2, eos_id=3, sep_id=None, lang_tags=[],
    )  # fmt: skip
    vocabulary = Vocabulary([f"t{number}" for number in range(job.V - 4)], special)
    shared = {"type": "recurrent", "rnn_type": "lstm", "embeddings": {"embedding_dim": job.E}, "dropout": job.dropout}
    model = build_model(
        {
            "encoder": {**shared, "hidden_size": job.H // 2, "num_layers": 1, "bidirectional": True},
            "decoder": {
                **shared,
                "hidden_size": job.H,
                "num_layers": 2,
                "attention": "bahdanau",
                "input_feeding": True,
                "hidden_dropout": job.dropout,
            },
        },
        vocabulary,
        vocabulary,
    )
    model.loss_function = ("crossentropy", 0.0)
    return model


def joeynmt_training(job: TextJob | PairJob) -> Work:
    """JoeyNMT's recurrent model, loss included."""
    assert isinstance(job, PairJob)
    model = _joeynmt(job).train()
    data = torch.from_numpy(np.random.default_rng(0).integers(4, job.V, (40, job.B, job.T + 1), dtype=np.int64))
    mask, lengths = torch.ones(job.B, 1, job.S, dtype=torch.bool), torch.full((job.B,), job.S)

    def loss_of(number: int) -> tuple[Tensor, int]:
        source, target = data[number, :, : job.S], data[number]
        loss, *_ = model(
            return_type="loss", src=source, src_length=lengths, src_mask=mask,
            trg_input=target[:, :-1], trg=target[:, 1:], trg_mask=mask,
        )  # fmt: skip
        return loss / (job.B * job.T), job.B * job.T

    return _updates(model, loss_of)


def joeynmt_decoding(job: TextJob | PairJob, beam: int, threads: int) -> Work:
    """JoeyNMT's own search."""
    from joeynmt.search import search

    assert isinstance(job, PairJob)
    del threads
    model = _joeynmt(job).eval()
    batch = SimpleNamespace(
        src=torch.from_numpy(np.random.default_rng(0).integers(4, job.V, (job.B, job.S), dtype=np.int64)),
        src_mask=torch.ones(job.B, 1, job.S, dtype=torch.bool),
        src_length=torch.full((job.B,), job.S),
        has_trg=False,
    )

    def decode() -> int:
        for _ in range(SENTENCES // job.B):
            search(model, batch, job.T, 0 if beam == 1 else beam, 1.0, min_output_length=job.T)
        return SENTENCES

    return decode


def _normalize(part: Any, width: int) -> None:
    """Layer norms that do nothing, wherever there are some."""
    for child in vars(part).values() if hasattr(part, "__dict__") else part if isinstance(part, list) else ():
        if type(child).__name__ == "LayerNormSpec":
            child.gamma, child.beta = np.ones(width, np.float32), np.zeros(width, np.float32)
        _normalize(child, width)


def _random_transformer(vocab_size: int) -> Any:
    """A specification with random weights: 4 + 4 layers of 256, about as many weights as job e has."""
    from ctranslate2.specs import TransformerSpec

    width, generator = 256, np.random.default_rng(0)
    spec = TransformerSpec.from_config(4, 4)

    def random(*shape: int) -> np.ndarray:
        return generator.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)

    def linear(part: Any, out: int, read: int = width) -> None:
        part.weight, part.bias = random(out, read), np.zeros(out, np.float32)

    _normalize(spec, width)
    for side in (spec.encoder, spec.decoder):
        for table in side.embeddings if isinstance(side.embeddings, list) else [side.embeddings]:
            table.weight = random(vocab_size, width)
        side.position_encodings.encodings = random(256, width)
        side.scale_embeddings = True
        for layer in side.layer:
            linear(layer.self_attention.linear[0], 3 * width)
            linear(layer.self_attention.linear[1], width)
            linear(layer.ffn.linear_0, 4 * width)
            linear(layer.ffn.linear_1, width, 4 * width)
    for layer in spec.decoder.layer:
        for part, out in zip(layer.attention.linear, (width, 2 * width, width), strict=True):
            linear(part, out)
    linear(spec.decoder.projection, vocab_size)
    return spec


def ctranslate2_decoding(job: TextJob | PairJob, beam: int, threads: int) -> Work:
    """CTranslate2 in int8: it has no LSTM, so a Transformer of about the same size."""
    import ctranslate2

    assert isinstance(job, PairJob)
    words = ["<unk>", "<s>", "</s>", *[f"t{number}" for number in range(job.V - 3)]]
    spec = _random_transformer(job.V)
    spec.register_source_vocabulary(words)
    spec.register_target_vocabulary(words)
    spec.validate()
    with tempfile.TemporaryDirectory() as folder:
        spec.save(folder)
        translator = ctranslate2.Translator(folder, compute_type="int8", inter_threads=1, intra_threads=threads)
    chosen = np.random.default_rng(0).integers(3, job.V, (SENTENCES, job.S))
    rows = [[words[number] for number in row] for row in chosen]

    def decode() -> int:
        translator.translate_batch(
            rows, max_batch_size=job.B, beam_size=beam, min_decoding_length=job.T, max_decoding_length=job.T
        )
        return SENTENCES

    return decode


TRAINING = {"torch": torch_training, "fastai": fastai_training, "joeynmt": joeynmt_training}
DECODING = {"joeynmt": joeynmt_decoding, "ctranslate2": ctranslate2_decoding}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=sorted({*TRAINING, *DECODING}))
    parser.add_argument("work", choices=["train", "decode"])
    parser.add_argument("job", choices=sorted(JOBS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--beam", type=int, default=1)
    parser.add_argument("--medium", action="store_true", help='with set_float32_matmul_precision("medium")')
    given = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(given.threads)
    if given.medium:
        torch.set_float32_matmul_precision("medium")
    version = importlib.import_module(given.peer).__version__
    name = f"{given.peer} {version}" + (", medium" if given.medium else "")
    job = JOBS[given.job]
    if given.work == "train":
        serve(TRAINING[given.peer](job), name=name)
    else:
        serve(DECODING[given.peer](job, given.beam, given.threads), name=name)
