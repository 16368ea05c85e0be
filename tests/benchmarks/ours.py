"""The project's own side of a benchmark: the code that `train` and `generate` run, fed with random tokens.

python tests/benchmarks/ours.py train|decode JOB [--threads N] [--precision bf16|int8] [--beam 5]
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jobs import JOBS, SENTENCES, PairJob, TextJob, serve

from rnnlm.data.ragged import Ragged
from rnnlm.decoding.beam import beam_search
from rnnlm.decoding.build import build_decoder
from rnnlm.decoding.sampling import greedy
from rnnlm.models.config import LanguageModelConfig, ModelConfig, Seq2SeqConfig
from rnnlm.models.seq2seq import Seq2Seq
from rnnlm.optim.config import OptimConfig
from rnnlm.training.build import build_run, seeded_model
from rnnlm.training.config import ComputeConfig, TrainConfig
from rnnlm.training.loop import training_steps

SPECIALS = 3
"""Ids below are padding, end and unknown."""


def language_model_config(job: TextJob) -> LanguageModelConfig:
    """The job's model."""
    return LanguageModelConfig(
        embedding_size=job.E, hidden_size=job.H, num_layers=job.L, tie_embeddings=job.tied, weight_drop=job.weight_drop,
        input_dropout=job.dropout, hidden_dropout=job.dropout, output_dropout=job.dropout,
    )  # fmt: skip


def random_text(job: TextJob) -> dict[str, Ragged]:
    """One stream, forty windows long."""
    tokens = np.random.default_rng(0).integers(SPECIALS, job.V, 40 * job.B * job.T, dtype=np.int32)
    return {"text": Ragged.from_rows([tokens])}


def pair_config(job: PairJob) -> Seq2SeqConfig:
    """The job's model."""
    return Seq2SeqConfig(
        embedding_size=job.E, hidden_size=job.H, encoder_layers=job.encoder_layers, decoder_layers=job.decoder_layers,
        attention="additive", copy_source=False, share_embeddings=False, tie_embeddings=False, output_size=job.H,
        dropout=job.dropout,
    )  # fmt: skip


def _config(job: TextJob | PairJob) -> ModelConfig:
    return language_model_config(job) if isinstance(job, TextJob) else pair_config(job)


def random_rows(job: PairJob, count: int, length: int) -> list[np.ndarray]:
    """Sentences of random tokens."""
    tokens = np.random.default_rng(0).integers(SPECIALS, job.V, (count, length), dtype=np.int32)
    return list(tokens)


def training_data(job: TextJob | PairJob) -> tuple[dict[str, Ragged], TrainConfig]:
    """Random tokens, and how they are cut into batches of the job's shape."""
    if isinstance(job, TextJob):
        return random_text(job), TrainConfig(lanes=job.B, bptt_length=job.T, max_steps=1_000_000)
    # `<eos>` makes S and T.
    source, target = (Ragged.from_rows(random_rows(job, 40 * job.B, length - 1)) for length in (job.S, job.T))
    return {"source": source, "target": target}, TrainConfig(batch_tokens=job.B * (job.S + job.T), max_steps=1_000_000)


def training(job: TextJob | PairJob, precision: str, threads: int) -> Callable[[], int]:
    """One update a call, with the optimizer that the peers use."""
    data, train = training_data(job)
    run = build_run(
        seeded_model(_config(job), job.V, 0),
        train_tokens=data,
        valid_tokens=None,
        train=train,
        optim=OptimConfig(algorithm="sgd", lr=0.1, weight_decay=0.0, clip_grad_norm=0.25),
        compute=ComputeConfig(precision=precision, threads=threads),  # type: ignore[arg-type]
        seed=0,
    )
    steps = training_steps(run)
    return lambda: next(steps).tokens


def decoding(job: PairJob, beam: int, precision: Any) -> Callable[[], int]:
    """Sentences a call, sorted into batches of 64, T tokens each."""
    model = seeded_model(_config(job), job.V, 0).eval()
    assert isinstance(model, Seq2Seq)
    decoder = build_decoder(model, pad_id=0, eos_id=1, vocab_size=job.V, precision=precision)
    rows = random_rows(job, SENTENCES, job.S - 1)  # `<eos>` makes S

    @torch.inference_mode()
    def decode() -> int:
        for start in range(0, SENTENCES, job.B):
            begun = decoder.start(rows[start : start + job.B])
            if beam == 1:
                greedy(decoder, begun, max_length=job.T, min_length=job.T)
            else:
                beam_search(decoder, begun, beam_size=beam, max_length=job.T, min_length=job.T)
        return SENTENCES

    return decode


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=["train", "decode"])
    parser.add_argument("job", choices=sorted(JOBS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--beam", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    job = JOBS[given.job]
    if given.work == "train":
        serve(training(job, given.precision, given.threads), name=f"rnnlm, {given.precision}")
    else:
        assert isinstance(job, PairJob)
        serve(decoding(job, given.beam, given.precision), name=f"rnnlm, {given.precision}")
